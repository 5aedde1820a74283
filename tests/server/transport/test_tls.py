"""TLS on both transports, with gRPC's own client."""

import asyncio
import shutil
import subprocess
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.address import Address
from extproc.config import ConfigError, ServerConfig, TlsConfig, Transport
from extproc.server.services.health import HealthStatuses, WithHealth
from extproc.server.transport.choose import build_transport
from extproc.server.transport.tls import Certificates

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl makes the certificates"
)
NAME = "router.test"


class Authority:
    """A certificate authority for one test."""

    def __init__(self, directory, name):
        self.directory = directory
        self.name = name
        self.cert = directory / f"{name}.crt"
        self._key = directory / f"{name}.key"
        self._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", self._key, "-out", self.cert, "-days", "2"),
            *("-subj", f"/CN={name}"),
        )

    def issue(self, common_name, cert, key):
        """Write a certificate for a name to one file, and its key to the other."""
        request = self.directory / "request.csr"
        extensions = self.directory / "extensions"
        extensions.write_text(f"subjectAltName=DNS:{common_name}\n")
        self._openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", key, "-out", request, "-subj", f"/CN={common_name}"),
        )
        self._openssl(
            *("x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self._key),
            *("-CAcreateserial", "-out", cert, "-days", "2", "-extfile", extensions),
        )

    def _openssl(self, *arguments):
        subprocess.run(
            ["openssl", *map(str, arguments)], check=True, capture_output=True
        )


class Files:
    """The files of a server and of a client, from two certificate authorities."""

    def __init__(self, directory, first, second):
        self.first, self.second = first, second
        self.cert, self.key = directory / "server.crt", directory / "server.key"
        self.client_ca = directory / "clients.crt"
        self.first.issue(NAME, self.cert, self.key)
        self.client_ca.write_bytes(self.first.cert.read_bytes())
        self.client_cert = directory / "client.crt"
        self.client_key = directory / "client.key"
        self.first.issue("envoy", self.client_cert, self.client_key)

    def config(self, mutual=False):
        client_ca = str(self.client_ca) if mutual else None
        return TlsConfig(str(self.cert), str(self.key), client_ca)

    def client(self, authority, with_certificate=False):
        """Return credentials of a client that trusts this certificate authority."""
        if not with_certificate:
            return grpc.ssl_channel_credentials(authority.cert.read_bytes())
        return grpc.ssl_channel_credentials(
            authority.cert.read_bytes(),
            self.client_key.read_bytes(),
            self.client_cert.read_bytes(),
        )


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    directory = tmp_path_factory.mktemp("authorities")
    return Authority(directory, "first"), Authority(directory, "second")


@pytest.fixture
def files(tmp_path, authorities):
    return Files(tmp_path, *authorities)


class NoService:
    def open(self, path, headers, send):
        return None


@asynccontextmanager
async def serving(transport, tls):
    health = HealthStatuses()
    health.set_all(True)
    server = build_transport(
        ServerConfig(transport=transport, tls=tls),
        WithHealth(NoService(), health),
        Address.parse("127.0.0.1:0"),
    )
    await server.start()
    port = server.port
    try:
        yield port
    finally:
        await server.drain(0)


async def is_served(port, credentials):
    """Return whether a new connection gets a response."""
    options = [
        ("grpc.ssl_target_name_override", NAME),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    target = f"127.0.0.1:{port}"
    if credentials is None:
        channel = grpc.aio.insecure_channel(target, options)
    else:
        channel = grpc.aio.secure_channel(target, credentials, options)
    async with channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return False
            raise
        return answer.status == health_pb2.HealthCheckResponse.SERVING


async def becomes_served(port, credentials):
    async with asyncio.timeout(15):
        while not await is_served(port, credentials):
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("transport", list(Transport))
def test_tls_serves_who_trusts_it_and_no_plain_text(transport, files):
    async def scenario():
        async with serving(transport, files.config()) as port:
            assert await is_served(port, files.client(files.first))
            assert not await is_served(port, files.client(files.second))
            assert not await is_served(port, None)

    asyncio.run(scenario())


@pytest.mark.parametrize("transport", list(Transport))
def test_mutual_tls_serves_only_clients_with_a_certificate(transport, files):
    async def scenario():
        async with serving(transport, files.config(mutual=True)) as port:
            assert await is_served(port, files.client(files.first, True))
            assert not await is_served(port, files.client(files.first))
            files.second.issue("stranger", files.client_cert, files.client_key)
            assert not await is_served(port, files.client(files.first, True))

    asyncio.run(scenario())


@pytest.mark.parametrize("transport", list(Transport))
def test_new_certificates_are_taken_over_while_serving(transport, files):
    async def scenario():
        async with serving(transport, files.config(mutual=True)) as port:
            old = files.client(files.first, True)
            assert await is_served(port, old)
            files.second.issue(NAME, files.cert, files.key)
            files.client_ca.write_bytes(files.second.cert.read_bytes())
            files.second.issue("envoy", files.client_cert, files.client_key)
            await becomes_served(port, files.client(files.second, True))
            assert not await is_served(port, old)

    asyncio.run(scenario())


def test_a_certificate_that_cannot_be_used_leaves_the_last_good_one(files, caplog):
    now = 0.0
    certificates = Certificates(files.config(), lambda: now)
    good = certificates.context
    files.cert.write_text("half a certif")
    now += 2
    certificates.refresh()
    assert certificates.context is good
    assert "certificates_refused" in caplog.text
    files.second.issue(NAME, files.cert, files.key)
    now += 2
    certificates.refresh()
    assert certificates.context is not good
    assert certificates.version == 1


@pytest.mark.parametrize("name", ["cert", "key", "client_ca"])
@pytest.mark.parametrize("how", ["missing", "nonsense"])
def test_files_that_cannot_be_used_are_an_error_at_start(files, name, how):
    file = getattr(files, name)
    if how == "missing":
        file.unlink()
    else:
        file.write_text("nonsense")
    with pytest.raises(ConfigError, match=r"^server\.tls[.:]"):
        Certificates(files.config(mutual=True))


def test_a_key_that_is_not_the_certificates_is_an_error_at_start(files):
    files.second.issue("another", files.client_cert, files.key)
    with pytest.raises(ConfigError, match=r"^server\.tls[.:]"):
        Certificates(files.config())
