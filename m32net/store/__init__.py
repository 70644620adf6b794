"""Settings, users, quality history and events in SQLite."""
