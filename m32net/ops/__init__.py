"""Running it: metrics, health, logging."""
