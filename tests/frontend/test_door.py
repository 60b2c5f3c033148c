"""HTTPS: what is bounded and quick over TCP is so over TLS, and the handshake is bounded too."""

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import httpx2
import pytest
from anyio.abc import SocketStream
from anyio.streams.tls import TLSStream

from sessionproxy.config import ConfigError
from sessionproxy.frontend import Endpoint
from sessionproxy.frontend.bounds import BoundedHttp, Bounds
from sessionproxy.http import Certificate
from sessionproxy.http.request import Receive, Scope, Send
from tests.rig.embedded import Embedded, embedded, plain, scripted, until
from tests.rig.http import PATIENCE, Client, calling, request
from tests.rig.proxy import proxy as process
from tests.rig.tls import LOOPBACK, Pem, issue

POST: Final = b"POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Pem:
    return issue(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def secured(pem: Pem, **settings: object) -> AsyncGenerator[Embedded]:
    certificate = Certificate(str(pem.cert), str(pem.key))
    running = plain(scripted(), observers=(), local=True, certificate=certificate, **settings)
    async with running as proxy:
        assert proxy.url.startswith("https://")
        yield proxy


@asynccontextmanager
async def trusting(pem: Pem) -> AsyncGenerator[httpx2.AsyncClient]:
    """A client that checks the certificate."""
    async with httpx2.AsyncClient(verify=pem.client(), timeout=None, trust_env=False) as pool:
        yield pool


@asynccontextmanager
async def session(pem: Pem, **settings: object) -> AsyncGenerator[tuple[Embedded, Client]]:
    async with secured(pem, **settings) as proxy, trusting(pem) as pool:
        client = Client(pool, proxy.url)
        assert (await client.initialize()).status_code == 200
        yield proxy, client


async def tls(proxy: Embedded, pem: Pem) -> TLSStream:
    """A connection whose handshake is over."""
    return await anyio.connect_tcp(
        LOOPBACK, proxy.port, ssl_context=pem.client(), tls_standard_compatible=False
    )


async def tcp(proxy: Embedded) -> SocketStream:
    return await anyio.connect_tcp(LOOPBACK, proxy.port)


async def all_of(stream: TLSStream | SocketStream) -> bytes:
    """Return what comes until the other side closes, in whatever way."""
    received = b""
    with anyio.fail_after(PATIENCE):
        try:
            while True:
                received += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return received


# -- what it serves --------------------------------------------------------------------------------


async def test_calls_and_streams_go_over_tls(pem: Pem) -> None:
    """Both a whole answer and a stream, large ones too, with a certificate that is checked."""
    async with session(pem) as (_, client):
        assert (await client.do())["count"] == 1
        async with client.doing({"progress": 3}, {"log": "x"}) as incoming:
            assert len(await incoming.rest()) == 2
        assert len((await client.do({"fill": 3_000_000}))["fill"]) == 3_000_000
        async with client.listen() as stream:
            await client.do({"then": [{"note": {"method": "notifications/x"}}]})
            assert (await stream.message())["method"] == "notifications/x"
        assert (await client.delete()).status_code == 204


async def test_the_short_way_is_taken_over_tls(pem: Pem, monkeypatch: pytest.MonkeyPatch) -> None:
    """`frontend.fastlane`: a head that came before does not go through ASGI again."""
    ordinary: list[str] = []
    served = Endpoint.__call__

    async def counted(
        self: Endpoint, scope: Scope, receive: Receive, send: Send, key: str | None = None
    ) -> None:
        ordinary.append(scope["scheme"])
        await served(self, scope, receive, send, key)

    async with session(pem) as (_, client):
        await client.do()
        monkeypatch.setattr(Endpoint, "__call__", counted)
        await client.do(echo="x" * 200)  # of another length: the head that is remembered has none
        for _ in range(5):
            await client.do()
        assert len(ordinary) <= 1
        assert set(ordinary) <= {"https"}


async def test_many_that_connect_at_once_are_all_served(pem: Pem) -> None:
    """What a client sends at once is there before anybody has had time to look: none of it may be
    lost, or its handshake never ends."""
    served: list[bytes] = []

    async def ask(proxy: Embedded) -> None:
        async with await tls(proxy, pem) as stream:
            await stream.send(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            served.append((await stream.receive())[:12])

    async with secured(pem) as proxy:
        with anyio.fail_after(5 * PATIENCE):
            async with anyio.create_task_group() as tasks:
                for _ in range(100):
                    tasks.start_soon(ask, proxy)
    assert served == [b"HTTP/1.1 200"] * 100


@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"use_uvloop": choice}) for choice in (True, False)]
)
async def test_a_request_that_comes_with_the_last_of_the_handshake_is_served(pem: Pem) -> None:
    """TCP knows no messages: it may be read before anybody is told that the handshake is over. On
    either event loop."""
    async with secured(pem) as proxy, await tcp(proxy) as stream:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        side = pem.client().wrap_bio(incoming, outgoing, server_hostname=LOOPBACK)
        with anyio.fail_after(PATIENCE):
            while True:
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    await stream.send(outgoing.read())
                    incoming.write(await stream.receive())
                else:
                    break
            side.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await stream.send(outgoing.read())  # the end of the handshake and the request in one
            while True:
                try:
                    assert side.read(65536).startswith(b"HTTP/1.1 200 ")
                except ssl.SSLWantReadError:
                    incoming.write(await stream.receive())
                else:
                    break


# -- what it bounds --------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"])
async def test_a_handshake_that_does_not_end_is_cut_off(
    sent: bytes, pem: Pem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F47: as a head that does not end."""
    monkeypatch.setattr(BoundedHttp, "bounds", Bounds(head=0.2, look=0.05))
    async with secured(pem) as proxy, await tcp(proxy) as stream:
        await stream.send(sent or b"\x16")
        with anyio.fail_after(5 * 1.0):
            assert await all_of(stream) == b""
        async with trusting(pem) as pool:
            assert (await pool.get(f"{proxy.base}/healthz")).status_code == 200


async def test_what_is_no_tls_is_closed(pem: Pem) -> None:
    """A client that forgot the `s` of `https`; the next one is served."""
    async with secured(pem) as proxy, trusting(pem) as pool:
        async with await tcp(proxy) as stream:
            await stream.send(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b"HTTP/1.1" not in await all_of(stream)
        assert (await pool.get(f"{proxy.base}/healthz")).status_code == 200


async def test_connections_that_shake_hands_count(
    pem: Pem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F47: else ten thousand of them would leave no descriptor for a backend."""
    monkeypatch.setattr("sessionproxy.frontend.door.REFUSALS_AT_ONCE", 0)
    async with secured(pem, max_connections=2) as proxy:
        async with await tcp(proxy), await tcp(proxy) as second:
            async with await tcp(proxy) as third:
                assert await all_of(third) == b""
            assert proxy.app.tally["connections"] == 1
            await second.aclose()
            await until_served(proxy, pem)


async def until_served(proxy: Embedded, pem: Pem) -> None:
    """Connect until there is room again."""
    with anyio.fail_after(PATIENCE):
        async with trusting(pem) as pool:
            while True:
                try:
                    assert (await pool.get(f"{proxy.base}/healthz")).status_code == 200
                    return
                except httpx2.TransportError:
                    await anyio.sleep(0.01)


async def test_too_many_connections_are_told_so_over_tls(pem: Pem) -> None:
    """DESIGN 11: 503."""
    async with secured(pem, max_connections=1) as proxy, await tls(proxy, pem):
        async with await tls(proxy, pem) as second:
            await second.send(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert (await all_of(second)).startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (POST, 408),
        (POST + b"content-length: 10\r\n\r\n{", 408),
        (b"POST /mcp HTTP/1.1\r\nx: " + b"x" * 200_000, 431),
    ],
)
async def test_what_does_not_end_is_refused_in_words_over_tls(
    sent: bytes, status: int, pem: Pem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F47: TLS has no half-closed connections, so it is closed by the client or by time."""
    bounds = Bounds(head=0.2, body=0.2, linger=0.2, look=0.05)
    monkeypatch.setattr(BoundedHttp, "bounds", bounds)
    async with secured(pem) as proxy, await tls(proxy, pem) as stream:
        await stream.send(sent)
        assert (await all_of(stream)).startswith(b"HTTP/1.1 %d " % status)


async def test_a_proxy_ends_though_somebody_shakes_hands(pem: Pem) -> None:
    """DESIGN 7: nothing holds up its end."""
    with anyio.fail_after(PATIENCE):
        async with secured(pem) as proxy:
            stream = await tcp(proxy)
            await stream.send(b"\x16")
            await until_served(proxy, pem)
        await stream.aclose()


# -- the certificate -------------------------------------------------------------------------------


async def _served(proxy: Embedded, pem: Pem) -> bool:
    """Whether a client that trusts this certificate alone is content."""
    async with trusting(pem) as pool:
        try:
            await pool.get(f"{proxy.base}/healthz")
        except httpx2.ConnectError:
            return False
        return True


async def test_a_certificate_that_is_reread_is_shown_to_who_connects_then(tmp_path: Path) -> None:
    """Whoever is connected stays so; a pair that does not fit changes nothing."""
    old, new = issue(tmp_path, "old"), issue(tmp_path, "new")
    used = Pem(tmp_path / "used.pem", tmp_path / "used.key")

    def use(cert: Path, key: Path) -> None:
        used.cert.write_bytes(cert.read_bytes())
        used.key.write_bytes(key.read_bytes())

    use(*old)
    certificate = Certificate(str(used.cert), str(used.key))
    async with (
        embedded(scripted(), certificate=certificate) as proxy,
        trusting(old) as pool,
    ):
        client = Client(pool, proxy.url)
        await client.initialize()
        await client.do()
        use(new.cert, old.key)
        with pytest.raises(ConfigError, match="not the key of"):
            certificate.reread()
        assert await _served(proxy, old)
        use(*new)
        certificate.reread()
        assert (await client.do())["count"] == 2
        assert await _served(proxy, new)
        assert not await _served(proxy, old)


async def test_the_command_line_serves_https(pem: Pem) -> None:
    """The URL that is shown can be used."""
    options = ("--tls-cert", str(pem.cert), "--tls-key", str(pem.key))
    async with process(scripted(), *options) as running, trusting(pem) as pool:
        assert running.url.startswith("https://")
        client = Client(pool, running.url)
        assert (await client.initialize()).status_code == 200
        answer = await client.post(request("tools/call", calling()))
        assert answer.json()["result"]["structuredContent"]["count"] == 1
        assert running.log == [] or not any("rror" in line for line in running.log)


async def test_nobody_waits_for_a_half_open_door(pem: Pem) -> None:
    """A client that leaves in the middle of its handshake leaves nothing behind."""
    async with secured(pem, max_connections=1) as proxy:
        for _ in range(3):
            async with await tcp(proxy) as stream:
                await stream.send(b"\x16\x03")
        await until_served(proxy, pem)
        await until(lambda: proxy.app.running.manager.admission.running == 0)
