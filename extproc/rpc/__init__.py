"""The server side of HTTP/2 and gRPC, without I/O or a clock.

The caller passes in the received bytes and sends the returned bytes.
"""
