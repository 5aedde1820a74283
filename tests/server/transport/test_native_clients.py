"""The native server on real sockets, over TLS and with nghttp2's tools."""

import asyncio
import contextlib
import shutil
import ssl
import subprocess

import grpc
import pytest

from ...rpc.peers import framed
from ..native_server import serving

# ---- TLS ---------------------------------------------------------------------------


def test_tls_with_grpcio(run, certificate, server_tls):
    async def test():
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        options = [("grpc.ssl_target_name_override", "localhost")]
        async with (
            serving(ssl_context=server_tls) as (server, _, _),
            grpc.aio.secure_channel(
                f"127.0.0.1:{server.port}", credentials, options
            ) as channel,
        ):
            once = channel.unary_unary("/test.Test/Once")
            for body in (b"x", b"y" * 500_000):
                assert await once(body) == body

    run(test())


def test_tls_without_alpn_is_cut_off(run, certificate, server_tls):
    async def test():
        async with serving(ssl_context=server_tls) as (server, _, _):
            context = ssl.create_default_context(cafile=certificate)
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", server.port, ssl=context, server_hostname="localhost"
            )
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            assert not server.peers

    run(test())


# ---- nghttp2 -----------------------------------------------------------------------


async def output_of(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]} (Debian: nghttp2-client)")
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output
    return output.decode()


def test_nghttp(run, tmp_path):
    (tmp_path / "body").write_bytes(framed(b"question" * 4_000))

    async def test():
        async with serving() as (server, service, _):
            output = await output_of(
                *("nghttp", "-v", "--no-dep", "--window-bits=10", "--padding=9"),
                *(
                    "-H:method: POST",
                    "-Hcontent-type: application/grpc",
                    "-Hte: trailers",
                ),
                *("-d", str(tmp_path / "body")),
                f"http://127.0.0.1:{server.port}/test.Test/Once",
            )
            assert ":status: 200" in output
            assert "grpc-status: 0" in output
            assert "[ERROR]" not in output
            assert service.calls[0].received == [b"question" * 4_000]

    run(test())


def test_h2load(run, tmp_path):
    (tmp_path / "body").write_bytes(framed(b"question" * 500))

    async def test():
        async with serving() as (server, service, _):
            output = await output_of(
                *("h2load", "-n", "400", "-c", "4", "-m", "25", "-t", "1"),
                *("-H", "content-type: application/grpc", "-d", str(tmp_path / "body")),
                f"http://127.0.0.1:{server.port}/test.Test/Once",
            )
            assert "400 succeeded, 0 failed, 0 errored" in output
            assert [call.closed_with for call in service.calls] == [[False]] * 400

    run(test())
