"""Request body modes of Envoy's ext_proc filter, as an operator may configure them."""

from collections.abc import Callable
from typing import Any

from extproc.demo.stack.envoy_config import ext_proc_filter


def configured(mode: str, *, override: bool) -> Callable[[dict[str, Any]], None]:
    """Return a change that sets the filter's request body mode."""

    def change(config: dict[str, Any]) -> None:
        ext_proc = ext_proc_filter(config)
        ext_proc["processing_mode"]["request_body_mode"] = mode
        ext_proc["allow_mode_override"] = override
        if mode == "FULL_DUPLEX_STREAMED":
            ext_proc["processing_mode"]["request_trailer_mode"] = "SEND"
            ext_proc["failure_mode_allow"] = False

    return change


ROUTING = {
    "asked for": ("NONE", True),
    "buffered": ("BUFFERED", False),
    "partial, asked for": ("BUFFERED_PARTIAL", True),
    "streamed, asked for": ("STREAMED", True),
    "full duplex": ("FULL_DUPLEX_STREAMED", False),
}
"""Each mode that allows routing, with whether the router can request another mode.
"""
