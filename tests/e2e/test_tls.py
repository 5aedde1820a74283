"""Envoy and the router authenticate each other by certificates that are renewed."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extproc.demo.stack.stack import router

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.xdist_group("e2e"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl"),
]
NAME = "router.test"
CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Authority:
    """An authority that issues certificates for the router and for Envoy."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.cert = directory / "ca.crt"
        key = directory / "ca.key"
        openssl(
            *("req", "-x509", *CURVE, "-keyout", key, "-out", self.cert),
            *("-days", "2", "-subj", "/CN=authority"),
        )

    def issue(self, name: str, directory: Path) -> None:
        """Write the certificate ``name``.crt and the key ``name``.key."""
        request, names = self.directory / "request", self.directory / "names"
        names.write_text(f"subjectAltName=DNS:{NAME}\n")
        key, cert = directory / f"{name}.key", directory / f"{name}.crt"
        openssl(
            *("req", *CURVE, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        )
        openssl(
            *("x509", "-req", "-in", request, "-CA", self.cert, "-CAcreateserial"),
            *("-CAkey", self.directory / "ca.key", "-out", cert, "-days", "2"),
            *("-extfile", names),
        )


def with_certificates(
    directory: Path, authority: Authority
) -> Callable[[dict[str, Any]], None]:
    """Make Envoy present a certificate and require the router's certificate."""
    tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
    context = {
        "@type": f"{tls}.UpstreamTlsContext",
        "sni": NAME,
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(directory / "envoy.crt")},
                    "private_key": {"filename": str(directory / "envoy.key")},
                }
            ],
            "validation_context": {
                "trusted_ca": {"filename": str(authority.cert)},
                "match_typed_subject_alt_names": [
                    {"san_type": "DNS", "matcher": {"exact": NAME}}
                ],
            },
        },
    }

    def change(bootstrap: dict[str, Any]) -> None:
        for cluster in bootstrap["static_resources"]["clusters"]:
            if cluster["name"] == "extproc":
                cluster["transport_socket"] = {
                    "name": "envoy.transport_sockets.tls",
                    "typed_config": context,
                }

    return change


@pytest.mark.parametrize("transport", ["grpcio", "native"])
def test_mutual_tls_through_envoy(
    transport: str,
    start_envoy: Any,
    eventually: Any,
    tmp_path: Path,
) -> None:
    authority, stranger = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    authority.issue("router", tmp_path)
    authority.issue("envoy", tmp_path)
    files = {
        "cert_file": str(tmp_path / "router.crt"),
        "key_file": str(tmp_path / "router.key"),
        "client_ca_file": str(authority.cert),
    }
    served = router({"server": {"transport": transport, "tls": files}}, tmp_path)
    with served.child:
        served.wait_ready()
        known = start_envoy(
            router=served, change=with_certificates(tmp_path, authority)
        )
        eventually(lambda: known.chat("Hello").served_by == "vllm_short")
        # Without a certificate, or with a certificate of another authority, a request
        # gets a response, but no decision.
        strange = tmp_path / "strange"
        strange.mkdir()
        stranger.issue("envoy", strange)
        for change in (None, with_certificates(strange, authority)):
            unknown = start_envoy(router=served, change=change)
            assert unknown.chat("Hello").served_by == "vllm_long"
        # After renewal, old connections continue, and new connections are accepted.
        authority.issue("router", tmp_path)
        assert known.chat("Hello").served_by == "vllm_short"
        renewed = start_envoy(
            router=served, change=with_certificates(tmp_path, authority)
        )
        eventually(lambda: renewed.chat("Hello").served_by == "vllm_short")
