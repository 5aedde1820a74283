"""Why a server did not answer, in words: no class of a library's, no address."""

from __future__ import annotations

import os
import ssl

import aiohttp


def reason(error: Exception) -> str:
    """Say why an HTTP request had no answer.

    Args:
        error: what aiohttp or a socket raised.
    """
    match error:
        case TimeoutError():
            return "no answer in time"
        case aiohttp.ClientConnectorDNSError():
            return "its name is not known"
        case aiohttp.ClientConnectorCertificateError(certificate_error=fault):
            return _of_certificate(fault)
        case ssl.SSLError() | aiohttp.ClientSSLError():
            return "TLS failed; expected http:// if it speaks no TLS"
        case aiohttp.ServerDisconnectedError():
            return "it closed the connection"
        case aiohttp.InvalidURL() | ValueError():
            return "expected http://HOST:PORT"
        case OSError(errno=int(number)):
            return os.strerror(number).lower()
    return "its answer is not HTTP"


def _of_certificate(fault: Exception) -> str:
    said = getattr(fault, "verify_message", "") or "cannot be verified"
    return f"certificate: {said}"
