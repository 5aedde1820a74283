"""Transports for gRPC: the native one and grpcio, with TLS."""
