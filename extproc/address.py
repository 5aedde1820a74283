"""Listening addresses: HOST:PORT, or unix:PATH for a Unix socket."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

_HOST_PORT = re.compile(r"(\[[^\[\]\s]+\]|[^:\s\[\]]+):(\d{1,5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Address:
    """A listening address. ``str`` returns the text that :meth:`parse` accepts."""

    host: str = ""
    """Host name or IP address without brackets; empty for a Unix socket."""
    port: int = 0
    """Port, 0 (any free port) to 65535; 0 for a Unix socket."""
    path: str = ""
    """Path of a Unix socket; empty for TCP."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse an address.

        Raises:
            ValueError: the text is neither HOST:PORT nor unix:PATH.
        """
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if path.startswith("//"):  # gRPC's unix:///absolute/path
                path = "/" + path.lstrip("/")
            if path.strip("/"):
                return cls(path=path)
        elif match := _HOST_PORT.fullmatch(text):
            host, port = match[1].strip("[]"), int(match[2])
            if port <= 0xFFFF:
                return cls(host, port)
        raise ValueError(f"address: {text!r}; expected HOST:PORT or unix:PATH")

    @property
    def is_unix(self) -> bool:
        """Whether this is the address of a Unix socket."""
        return bool(self.path)

    def nth(self, index: int) -> Address:
        """Return the address of one of several servers, counting from 0.

        TCP ports are consecutive; sockets are PATH.0, PATH.1 and so on.
        """
        if self.is_unix:
            return replace(self, path=f"{self.path}.{index}")
        return replace(self, port=self.port + index)

    def with_port(self, port: int) -> Address:
        """Return the address with the bound port; a Unix socket is unchanged."""
        return self if self.is_unix else replace(self, port=port)

    def __str__(self) -> str:
        if self.is_unix:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"
