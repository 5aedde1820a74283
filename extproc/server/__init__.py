"""The server, which does all I/O: transports, metrics, learned state, admin port."""
