"""The gRPC services ext_proc, access log, Decide and Observe, and health."""
