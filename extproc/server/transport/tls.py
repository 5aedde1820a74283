"""TLS on the gRPC port, with certificates that are reloaded when they change.

Both transports use the same certificates. If a file is unusable, or key and certificate
do not match, the last valid certificates stay in force, because certificates are
replaced one file at a time and a renewal must not close the port.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from extproc.config import ConfigError, TlsConfig
from extproc.server.reload import Fingerprint, fingerprint

logger = logging.getLogger(__name__)

_TLS_1_2_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""TLS 1.2 ciphers that HTTP/2 does not prohibit (RFC 9113, 9.2.2 and appendix A)."""

_CHECK_S = 1.0
"""Minimum seconds between checks of the files; new connections trigger the check."""


class Certificates:
    """The current certificates of a ``TlsConfig``.

    Args:
        config: paths of the files.
        clock: monotonic clock in seconds.

    Raises:
        ConfigError: a file is unusable.
    """

    def __init__(
        self, config: TlsConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._clock = clock
        self._lock = threading.Lock()  # gRPC calls the methods from its own threads
        self._checked_s = clock()
        self._seen = self._fingerprints()
        self.version = 0
        """Version number; increases with each reload."""
        try:
            self.context = self._load()
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigError(self._fault(error)) from None

    def refresh(self) -> None:
        """Reload changed files if they are valid."""
        with self._lock:
            now = self._clock()
            if now - self._checked_s >= _CHECK_S:
                self._checked_s = now
                self._take_over()

    def _take_over(self) -> None:
        found = self._fingerprints()
        if found == self._seen:
            return
        self._seen = found
        try:
            self.context = self._load()
        except (OSError, ValueError) as error:
            fields = {"error": self._fault(error), "in_force": "previous"}
            logger.error("certificates_refused", extra={"fields": fields})
            return
        self.version += 1
        logger.info("certificates_reloaded")

    def _fingerprints(self) -> list[Fingerprint | None]:
        return [fingerprint(path) for path in self._paths()]

    def _paths(self) -> list[Path]:
        config = self._config
        names = [config.cert_file, config.key_file, config.client_ca_file]
        return [Path(name) for name in names if name is not None]

    def _fault(self, error: Exception) -> str:
        """Return the first setting whose file is unreadable, or the TLS error."""
        for key in ("cert_file", "key_file", "client_ca_file"):
            name = getattr(self._config, key)
            try:
                if name is not None:
                    Path(name).read_bytes()
            except OSError as unread:
                return f"server.tls.{key}: {name!r}: {_reason(unread)}"
        return f"server.tls: {_reason(error)}"

    def _load(self) -> ssl.SSLContext:
        config = self._config
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        context.set_ciphers(_TLS_1_2_CIPHERS)
        context.load_cert_chain(config.cert_file, config.key_file)
        if config.client_ca_file is not None:
            context.load_verify_locations(config.client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
        self.pem = tuple(path.read_bytes() for path in self._paths())
        return context


class LiveContext(ssl.SSLContext):
    """An SSL context that uses the current certificates for every new connection.

    asyncio creates a connection's TLS object with ``wrap_bio``; this class delegates
    that call to the current context.
    """

    _certificates: Certificates

    @classmethod
    def of(cls, certificates: Certificates) -> LiveContext:
        """Create a context that uses these certificates."""
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context._certificates = certificates
        return context

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """Start TLS on one connection with the current certificates."""
        self._certificates.refresh()
        return self._certificates.context.wrap_bio(*args, **options)


def grpc_credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Create credentials for grpcio that use the current certificates.

    gRPC calls the function at each handshake, on its own threads; a result of None
    means that the certificates have not changed.
    """
    given = certificates.version

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        certificates.refresh()
        if certificates.version == given:
            return None
        given = certificates.version
        return _configuration(certificates)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(certificates),
        changed,  # type: ignore[arg-type]  # the stubs lack None
        require_client_authentication=len(certificates.pem) == 3,
    )


def _configuration(
    certificates: Certificates,
) -> grpc.ServerCertificateConfiguration:
    chain, key, *client_ca = certificates.pem
    return grpc.ssl_server_certificate_configuration(
        [(key, chain)], root_certificates=client_ca[0] if client_ca else None
    )


def _reason(error: Exception) -> str:
    # An SSL error about these files contains neither their names nor their content.
    return (
        getattr(error, "strerror", None) or getattr(error, "reason", "") or str(error)
    )
