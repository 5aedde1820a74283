"""Listeners for gRPC: the native transport, grpcio, TLS."""
