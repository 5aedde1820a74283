"""The native and grpcio transports for gRPC, with TLS."""
