"""The control session between a listener and a server: JSON messages on one WebSocket."""
