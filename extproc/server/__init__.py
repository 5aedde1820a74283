"""I/O: transports, codec, metrics, state, the admin port."""
