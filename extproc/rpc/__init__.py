"""Server side of HTTP/2 and gRPC: bytes in, calls and bytes out.

Pure: no I/O, no clock. The caller reads and writes sockets.
"""
