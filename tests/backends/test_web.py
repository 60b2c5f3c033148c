"""`backends.remote.web`: what goes wrong on a connection, and what has come before that."""

import asyncio  # noqa: TID251 - the rig's own
import ssl
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import anyio
import psutil
import pytest
from aiohttp.http_exceptions import TransferEncodingError

from sessionproxy import ConfigError
from sessionproxy.backends import Target
from sessionproxy.backends.remote.web import Web, chunks
from sessionproxy.core.background import Background
from sessionproxy.errors import BackendError, BackendFailed, BackendUnreachable
from tests.rig.embedded import until
from tests.rig.tls import issue

Served = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\n"


@asynccontextmanager
async def server(served: Served, tls: ssl.SSLContext | None = None) -> AsyncGenerator[int]:
    """Serve every connection with `served`; yield the port."""
    running = await asyncio.start_server(served, "127.0.0.1", 0, ssl=tls)
    try:
        yield running.sockets[0].getsockname()[1]
    finally:
        running.close()


@asynccontextmanager
async def web(url: str, headers: Sequence[str] = ()) -> AsyncGenerator[tuple[Web, Target]]:
    target = Target(url, headers=headers)
    made = Web(target, Background(), "test")
    try:
        yield made, target
    finally:
        await made.close()


def saying(answer: bytes) -> Served:
    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10_000)
        writer.write(answer)
        writer.close()

    return served


async def posted(url: str, content: bytes = b"{}", headers: Sequence[str] = ()) -> bytes:
    async with web(url, headers) as (made, target):
        async with made.request("POST", target.url, (), content) as response:
            async with aclosing(chunks(response)) as incoming:
                return b"".join([part async for part in incoming])


async def failure(url: str, content: bytes = b"{}", headers: Sequence[str] = ()) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await posted(url, content, headers)
    return caught.value


# -- what went wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "it hung up without an answer"),
        (b"garbage\r\n\r\n", "what it says is not HTTP"),
        (OK + b"x: " + 20_000 * b"a" + b"\r\n\r\n", "what it says is not HTTP"),
        (OK + b"content-length: 9\r\n\r\nab", "it hung up in the middle of its answer"),
        (OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n", "what it says is not HTTP"),
    ],
)
async def test_a_connection_that_breaks_is_told_of_without_what_may_be_secret(
    answer: bytes, said: str
) -> None:
    """FAULTS, credentials: the texts of the library have the whole URL in them."""
    async with server(saying(answer)) as port:
        found = await failure(f"http://127.0.0.1:{port}/mcp?key=s3cret")
    assert isinstance(found, BackendFailed)
    assert str(found) == f"The connection to the backend broke: {said}."
    assert found.__context__ is None  # it would keep frames, and what they know, alive


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1/?key=s3cret", "Connection refused"),
        ("http://mcp.invalid/?key=s3cret", "its name is not known"),
    ],
)
async def test_a_server_that_is_not_there_was_sent_nothing(url: str, said: str) -> None:
    """FAULTS F01; and the operator's network is none of the users' business."""
    found = await failure(url)
    assert isinstance(found, BackendUnreachable)
    assert found.executed is False
    assert str(found) == f"The backend cannot be reached: {said}."
    assert found.__context__ is None


async def test_a_server_that_speaks_no_tls_was_sent_nothing() -> None:
    """FAULTS F01."""
    async with server(saying(OK + b"\r\n")) as port:
        found = await failure(f"https://127.0.0.1:{port}/?key=s3cret")
    assert isinstance(found, BackendUnreachable)
    assert "s3cret" not in str(found)


# -- what has come before that ---------------------------------------------------------------------


async def test_what_has_come_before_the_end_is_read_though_nobody_was_reading() -> None:
    """DESIGN 5.4: an answer that has arrived is not lost with its connection."""
    go = asyncio.Event()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10_000)
        writer.write(OK + b"transfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await go.wait()
        writer.write(b"3\r\ntwo\r\n")
        writer.close()

    async with server(served) as port, web(f"http://127.0.0.1:{port}/") as (made, target):
        async with made.request("POST", target.url, (), b"{}") as response:
            incoming = chunks(response)
            assert await anext(incoming) == b"one"
            go.set()
            await until(lambda: response.content.exception() is not None)
            assert await anext(incoming) == b"two"
            with pytest.raises(BackendFailed):
                await anext(incoming)


async def test_what_is_no_http_in_the_middle_of_an_answer_ends_it() -> None:
    """DESIGN 5.3: the library tells its own reader of that, and nobody who waits for more."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10_000)
        writer.write(OK + b"transfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await writer.drain()
        await go.wait()
        writer.write(b"zz\r\n")
        writer.close()

    go = asyncio.Event()
    async with server(served) as port, web(f"http://127.0.0.1:{port}/") as (made, target):
        for _ in range(2):
            go.clear()
            async with made.request("POST", target.url, (), b"{}") as response:
                incoming = chunks(response)
                assert await anext(incoming) == b"one"
                go.set()
                with anyio.fail_after(5), pytest.raises(BackendFailed):
                    await anext(incoming)


@pytest.mark.parametrize("error", [ValueError("x"), TransferEncodingError("x"), EOFError()])
async def test_of_what_was_sent_nobody_says_that_it_was_not(error: Exception) -> None:
    """DESIGN 5.12: whatever is raised while its answer is read. (Where the library has no parser in
    C, what is no HTTP is told so.)"""
    answer = OK + b"content-length: 9\r\n\r\n"

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10_000)
        writer.write(answer)
        await reader.read(1)
        writer.close()

    async with server(served) as port, web(f"http://127.0.0.1:{port}/") as (made, target):
        async with made.request("POST", target.url, (), b"{}") as response:
            response.content.set_exception(error)
            with pytest.raises(BackendFailed) as caught:
                await anext(chunks(response))
    assert caught.value.executed is None


async def test_what_cannot_be_written_was_not_sent() -> None:
    """FAULTS F01; whatever the library raises, it becomes an error of ours."""
    async with server(saying(OK + b"\r\n")) as port:
        async with web(f"http://127.0.0.1:{port}/") as (made, target):
            with pytest.raises(BackendUnreachable, match="cannot be written"):
                async with made.request("GET", target.url, [("last-event-id", "a\x01b")]):
                    pass
    assert isinstance(await failure(f"http://{70 * 'a'}.invalid/"), BackendUnreachable)


# -- large messages --------------------------------------------------------------------------------


async def test_a_large_message_arrives_whole_as_fast_as_it_is_taken() -> None:
    """DESIGN 5.4: most of it waits here for a server that does not read."""
    content = b"0123456789abcdef" * (512 * 1024)
    begun: list[bytes] = []
    taken: list[bytes] = []
    slowly = asyncio.Event()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert f"content-length: {len(content)}" in head.decode().lower()
        begun.append(head)
        await slowly.wait()
        taken.append(await reader.readexactly(len(content)))
        writer.write(OK + b"content-length: 2\r\n\r\nok")
        writer.close()

    async with server(served) as port, anyio.create_task_group() as tasks:

        async def post() -> None:
            assert await posted(f"http://127.0.0.1:{port}/", content) == b"ok"

        tasks.start_soon(post)
        await until(lambda: bool(begun))
        assert not taken
        slowly.set()
    assert taken == [content]


async def test_a_server_that_hangs_up_in_the_middle_of_a_large_message_is_told_of() -> None:
    """FAULTS F03: nobody knows whether it was executed."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.transport.abort()

    async with server(served) as port:
        found = await failure(f"http://127.0.0.1:{port}/?key=s3cret", 20_000_000 * b"x")
    assert isinstance(found, BackendFailed)
    assert found.executed is None
    assert "s3cret" not in str(found)


async def test_a_large_message_that_is_given_up_leaves_no_connection() -> None:
    """DESIGN 5.5: the system would keep it for as long as anything of it is unsent."""

    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        writer.close()

    def connected() -> list[object]:
        found = psutil.Process().net_connections("tcp")
        return [each for each in found if each.raddr and each.raddr.port == port]

    go = asyncio.Event()
    async with server(stuck) as port, web(f"http://127.0.0.1:{port}/") as (made, target):
        async with anyio.create_task_group() as tasks:

            async def post() -> None:
                async with made.request("POST", target.url, (), 20_000_000 * b"x"):
                    pass

            tasks.start_soon(post)
            await until(lambda: bool(connected()))
            await anyio.sleep(0.1)  # it is being written
            tasks.cancel_scope.cancel()
        await until(lambda: not connected())
        go.set()


# -- what is asked for -----------------------------------------------------------------------------


async def test_a_url_is_asked_for_as_it_was_written_and_its_credential_goes_in_a_header() -> None:
    """RFC 3986, section 6.2.2: what is escaped may be signed; RFC 7617, section 2."""
    heads: list[str] = []

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(OK + b"content-length: 0\r\n\r\n")
        writer.close()

    path = "/a%2Fb/%7Ec/./d?key=a+b%20c%2B&=;x"
    async with server(served) as port:
        assert await posted(f"http://me:p%2540w@127.0.0.1:{port}{path}#there") == b""
    (head,) = heads
    assert head.startswith(f"POST {path} HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{port}\r\n" in head
    assert "authorization: Basic bWU6cCU0MHc=\r\n" in head  # me:p%40w


@pytest.mark.parametrize(
    ("own", "said", "sent"),
    [
        ((), [['a="x y"; Path=/', "b=1"]], ['a="x y"', "b=1"]),
        ((), [['lb="abc=="']], ['lb="abc=="']),
        ((), [["a=1"], ["a=; expires=Thu, 01 Jan 1970 00:00:00 GMT"]], []),
        ((), [["a=1; Domain=example.org", "b=1; Secure", "c=1; Path=/elsewhere"]], []),
        (("Cookie=a=b c; {}",), [["b=1"]], ["a=b c", "{}"]),
        ((), [[f"c{n}=1" for n in range(60)]], []),
    ],
)
async def test_cookies_are_sent_back_as_they_came(
    own: Sequence[str], said: Sequence[Sequence[str]], sent: Sequence[str]
) -> None:
    """RFC 6265: a load balancer knows its own by them. The operator's are the operator's."""
    heads: list[str] = []

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
                now = said[len(heads) - 1] if len(heads) <= len(said) else ()
                cookies = "".join(f"set-cookie: {each}\r\n" for each in now)
                writer.write(OK + cookies.encode() + b"content-length: 0\r\n\r\n")
        writer.close()

    async with server(served) as port, web(f"http://127.0.0.1:{port}/", own) as (made, target):
        for _ in (*said, None):
            async with made.request("GET", target.url, ()):
                pass
    lines = [line for line in heads[-1].split("\r\n") if line.lower().startswith("cookie: ")]
    assert sorted("; ".join(lines).removeprefix("cookie: ").split("; ")) == (sorted(sent) or [""])


# -- proxies ---------------------------------------------------------------------------------------


async def relayed(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, there: tuple[str, int]
) -> None:
    """Be a tunnel until one side ends."""
    far_reader, far_writer = await asyncio.open_connection(*there)

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(1000):
                sink.write(data)
            sink.close()

    await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
async def test_a_socks_proxy_is_used_with_its_credential(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ALL_PROXY, as everywhere (RFC 1928, RFC 1929): the proxy finds out who `mcp.invalid` is."""
    asked: list[tuple[str, str, str]] = []

    async def socks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, count = await reader.readexactly(2)
        assert 2 in await reader.readexactly(count)  # by name and password
        writer.write(b"\x05\x02")
        name = await reader.readexactly((await reader.readexactly(2))[1])
        password = await reader.readexactly((await reader.readexactly(1))[0])
        writer.write(b"\x01\x00")
        assert await reader.readexactly(4) == b"\x05\x01\x00\x03"  # connect, to a name
        host = await reader.readexactly((await reader.readexactly(1))[0])
        await reader.readexactly(2)
        asked.append((name.decode(), password.decode(), host.decode()))
        writer.write(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        await relayed(reader, writer, ("127.0.0.1", port))

    async with server(saying(OK + b"content-length: 2\r\n\r\nok")) as port, server(socks) as by:
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://me:pw@127.0.0.1:{by}")
        assert await posted("http://mcp.invalid/") == b"ok"
    assert asked == [("me", "pw", "mcp.invalid")]


@pytest.mark.parametrize("answer", [b"\x05\xff", b"", b"\x05"])
async def test_a_socks_proxy_that_lets_nobody_through_is_told_of(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F01: nothing was sent."""
    async with server(saying(answer)) as by:
        monkeypatch.setenv("ALL_PROXY", f"socks5://127.0.0.1:{by}")
        found = await failure("http://mcp.invalid/?key=s3cret")
    assert isinstance(found, BackendUnreachable)
    assert str(found).endswith("the SOCKS proxy did not let us through.")


@pytest.mark.parametrize("known", [None, "Basic bWU6cMOkw6Q="])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_is_told_its_own_credential_and_of_a_tunnel_nothing_else(
    scheme: str, known: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 9110, sections 11.7.2 and 9.3.6. FAULTS, credentials: what the server is told goes
    through the tunnel, and is none of the proxy's business."""
    heads: list[str] = []

    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    told = ("Authorization=Bearer s3cret", "X-Api-Key=s3cret", "Cookie=a=s3cret")
    async with server(refusing) as by:
        who = "" if known is None else "me:p%C3%A4%C3%A4@"
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://{who}127.0.0.1:{by}")
        if scheme == "https":
            found = await failure("https://mcp.invalid/?key=s3cret", headers=told)
            assert isinstance(found, BackendUnreachable)
            assert str(found).endswith("the HTTP proxy answered 407.")
            await failure("https://you:s3cret@mcp.invalid/?key=s3cret")
        else:
            await posted("http://mcp.invalid/?key=s3cret", headers=told)
    for head in heads:
        fields = [line.partition(": ") for line in head.split("\r\n")[1:]]
        own = [value for name, _, value in fields if name.lower() == "proxy-authorization"]
        assert own == ([] if known is None else [known])
        if scheme == "https":
            assert head.startswith("CONNECT mcp.invalid:443 HTTP/1.1\r\n")
            assert "s3cret" not in head
            assert "eW91OnMzY3JldA" not in head  # you:s3cret
        else:
            assert head.startswith("POST http://mcp.invalid/?key=s3cret HTTP/1.1\r\n")


async def test_tls_goes_through_a_tunnel_of_the_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """RFC 9110, section 9.3.6: the proxy learns where to, and nothing else."""
    pem = issue(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem.cert, pem.key)
    heads: list[bytes] = []

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await relayed(reader, writer, ("127.0.0.1", port))

    monkeypatch.setenv("SSL_CERT_FILE", str(pem.cert))
    answer = saying(OK + b"content-length: 2\r\n\r\nok")
    async with server(answer, context) as port, server(tunnel) as by:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{by}")
        assert await posted(f"https://127.0.0.1:{port}/?key=s3cret") == b"ok"
    (head,) = heads
    assert head.startswith(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n".encode())
    assert b"s3cret" not in head


async def test_a_proxy_that_is_not_there_is_told_from_a_server_that_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F01: whoever reads it looks at the right place."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    found = await failure("http://mcp.invalid/?key=s3cret")
    assert isinstance(found, BackendUnreachable)
    assert str(found).endswith("cannot be reached: the HTTP proxy: Connection refused.")


def test_a_socks_proxy_needs_a_package_which_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN 11: bad configuration; and the variable is the one that was set."""
    monkeypatch.setitem(sys.modules, "aiohttp_socks", None)
    for name, url in (
        ("ALL_PROXY", "http://mcp.invalid/"),
        ("HTTPS_PROXY", "https://mcp.invalid/"),
    ):
        monkeypatch.setenv(name, "socks5://127.0.0.1:1")
        with pytest.raises(
            ConfigError,
            match=rf"^{name}: .* need the package aiohttp-socks \(sessionproxy\[socks\]\)$",
        ):
            Target(url)


def test_what_is_no_proxy_is_refused_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DESIGN 11: bad configuration."""
    for wrong in ("ftp://x", "http://", "http://[::1"):
        monkeypatch.setenv("HTTP_PROXY", wrong)
        with pytest.raises(ConfigError, match=r"^HTTP_PROXY: expected the URL of an HTTP proxy"):
            Target("http://mcp.invalid/")
