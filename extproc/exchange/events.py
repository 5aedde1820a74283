"""What ext_proc tells us of one HTTP exchange, and what we tell it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from extproc.routing.router import Decision, Outcome


class BodyMode(IntEnum):
    """How Envoy sends a body; the numbers are ``ProcessingMode.BodySendMode``'s."""

    NONE = 0
    STREAMED = 1
    BUFFERED = 2
    BUFFERED_PARTIAL = 3
    FULL_DUPLEX_STREAMED = 4


@dataclass(frozen=True, slots=True)
class RequestHeaders:
    """The request's headers, keys in lower case."""

    headers: Mapping[str, str]
    end_of_stream: bool = False
    request_mode: BodyMode | None = None
    """The configured request body mode, where Envoy says it (1.34 and later)."""
    response_mode: BodyMode | None = None


@dataclass(frozen=True, slots=True)
class RequestBody:
    body: bytes
    end_of_stream: bool = False


@dataclass(frozen=True, slots=True)
class RequestTrailers:
    end_of_stream: bool = True


@dataclass(frozen=True, slots=True)
class ResponseHeaders:
    """The response's headers, ``:status`` among them."""

    headers: Mapping[str, str]
    end_of_stream: bool = False


@dataclass(frozen=True, slots=True)
class ResponseBody:
    body: bytes
    end_of_stream: bool = False


@dataclass(frozen=True, slots=True)
class ResponseTrailers:
    end_of_stream: bool = True


Event = (
    RequestHeaders
    | RequestBody
    | RequestTrailers
    | ResponseHeaders
    | ResponseBody
    | ResponseTrailers
)


@dataclass(frozen=True, slots=True)
class Continue:
    """Go on; nothing changes."""


@dataclass(frozen=True, slots=True)
class AskRequestBody:
    """Go on, and send the request body buffered and the response headers."""


@dataclass(frozen=True, slots=True)
class AskResponseBody:
    """Go on, and send the response body in chunks as it comes."""


@dataclass(frozen=True, slots=True)
class Withhold:
    """Say nothing yet: in full duplex Envoy waits for neither reply nor body."""


@dataclass(frozen=True, slots=True)
class Route:
    """Set the decision's headers and metadata, and choose the route anew."""

    decision: Decision
    body: bytes | None = None
    """The request body to send in place of the one that came."""
    shadow: bool = False
    """Set the metadata only: the request takes the route that it has."""
    receipt: bytes = b""
    """The decision, to come back in the access log; empty: it does not."""


@dataclass(frozen=True, slots=True)
class Release:
    """Full duplex: the headers' reply with its decision, then the body so far."""

    decision: Decision | None
    body: bytes
    end_of_stream: bool
    trailers: bool = False
    """Whether the body ended in trailers, which are to be answered too."""
    shadow: bool = False
    """As in ``Route``."""
    receipt: bytes = b""
    """As in ``Route``."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Send these bytes in place of the response chunk that came."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Echo:
    """Full duplex: send the chunk on as it came (Envoy keeps no copy)."""

    body: bytes
    end_of_stream: bool


Reply = (
    Continue
    | AskRequestBody
    | AskResponseBody
    | Withhold
    | Route
    | Release
    | Rewrite
    | Echo
)


@dataclass(frozen=True, slots=True)
class Serving:
    """How a response came about, as Envoy's access log has it."""

    cluster: str
    """Who gave it; after a retry not the decision's pool. Empty: Envoy itself."""
    first_byte_s: float | None = None
    """From the request's first byte to the response's; None: there was none."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A decision, and what its response said."""

    decision: Decision
    outcome: Outcome
    serving: Serving | None = None
    """None where the response was looked at as it passed."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one event leads to."""

    reply: Reply
    end: bool = False
    """Whether we end the stream after this reply: Envoy goes on without us."""
    observation: Observation | None = None
