"""HTTP/2 and gRPC as a server speaks them: bytes in, calls and bytes out.

Pure: no I/O, no clock. The caller reads and writes sockets.
"""
