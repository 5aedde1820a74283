"""The server: transports, codec, metrics, state and the admin port (all I/O)."""
