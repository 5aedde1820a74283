"""Describes why a server did not respond, without library class names or addresses."""

from __future__ import annotations

import os
import ssl

import aiohttp


def reason(error: Exception) -> str:
    """Describe why an HTTP request failed.

    Args:
        error: exception raised by aiohttp or a socket.
    """
    match error:
        case TimeoutError():
            return "timeout"
        case aiohttp.ClientConnectorDNSError():
            return "unknown host name"
        case aiohttp.ClientConnectorCertificateError(certificate_error=fault):
            return _of_certificate(fault)
        case ssl.SSLError() | aiohttp.ClientSSLError():
            return "TLS failed; expected http:// for a server without TLS"
        case aiohttp.ServerDisconnectedError():
            return "the server closed the connection"
        case aiohttp.InvalidURL() | ValueError():
            return "expected http://HOST:PORT"
        case OSError(errno=int(number)):
            return os.strerror(number).lower()
    return "the response is not HTTP"


def _of_certificate(fault: Exception) -> str:
    text = getattr(fault, "verify_message", "") or "cannot be verified"
    return f"certificate: {text}"
