"""Where an upstream is and how it is spoken to, in the operator's words, checked once.

Neighbours: `launcher` makes one client of it for each session.
"""

import re
import socket
import ssl
import sys
from base64 import b64encode
from collections.abc import Sequence
from typing import Final
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from ...config import Carrier, ConfigError

Headers = Sequence[tuple[str, str]]

CONNECT_TIMEOUT: Final = 10.0
"""Seconds for a connection, its TLS included. How long a server may take to answer is the session's
business: `start_timeout`, `call_timeout`."""

KEEPALIVE: Final = 4.0
"""Seconds for which an unused connection is kept: many servers close theirs after five, and what is
written at that moment is lost."""

DEAD_PEER: Final = 30
"""Seconds after which a peer that acknowledges nothing, or takes nothing of what is written, counts
as gone: a call may wait for its answer for hours, and so may a stream."""

MAX_HEAD: Final = 16 * 1024
MAX_FIELDS: Final = 1000
"""Bytes of one line of a response's head, and its lines."""

PROBE_EVERY: Final = 10

SOCKS_PORT: Final = 1080

RESERVED: Final = frozenset(
    {
        "accept", "connection", "content-length", "content-type", "host", "last-event-id",
        "mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id", "transfer-encoding",
        "accept-encoding", "content-encoding", "expect",
    }
)  # fmt: skip
"""Headers that are the protocol's own."""

_NO_URL: Final = re.compile(r"[\x00-\x20\x7f\ud800-\udfff]")
"""What no URL has in it; the library lets some of it pass, and fails with it later."""

_WRITTEN: Final = re.compile("[!-~]*")

_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?")
"""RFC 9110, sections 5.6.2 and 5.5."""


class Target:
    """An upstream. Its headers are secrets: `repr` and messages show none."""

    def __init__(
        self,
        url: str,
        *,
        carrier: Carrier = Carrier.AUTO,
        headers: Sequence[str] = (),
        ca: str | None = None,
        forwards: bool = False,
    ) -> None:
        """`headers`: `NAME=VALUE` each. `ca`: file of certificates to trust besides the usual ones.
        `forwards`: the callers' own credentials go along.

        Raises: ConfigError: one of them is wrong.
        """
        checked, credential = _checked(url)
        self.url: URL = checked
        self.carrier = carrier
        self.forwards = forwards
        sent = [("accept-encoding", "identity"), *_assigned(headers)]
        names = {name for name, _ in sent}
        if credential is not None and "authorization" not in names:
            sent.append(("authorization", credential))
        if forwards and (credential is not None or "authorization" in names):
            text = "--forward-authorization: --header or --url has a credential already"
            raise ConfigError(text)
        if "user-agent" not in names:
            sent.append(("user-agent", "sessionproxy"))
        self._proxy, known = _proxy_of(self.url)
        self.proxy_headers: Headers = ()
        """What an HTTP proxy alone is told, where there is a tunnel through it."""
        if known is not None and self.url.scheme == "https":
            self.proxy_headers = (("proxy-authorization", known),)
        elif known is not None:
            sent.append(("proxy-authorization", known))
        self.headers: Headers = tuple(sent)
        """What goes with every request."""
        self.sets_cookies: bool = "cookie" in names
        """The operator does, so the server's are not kept."""
        if ca is not None and self.url.scheme != "https":
            raise ConfigError("--upstream-ca: --url is not https")
        self._tls = _tls(ca) if self.url.scheme == "https" else True

    def __repr__(self) -> str:
        return f"<Target {shown(self.url)}>"

    def client(self) -> aiohttp.ClientSession:
        """Return a client with connections of its own."""
        return aiohttp.ClientSession(
            connector=self._connector(),
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT, sock_read=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            proxy=None if _is_socks(self._proxy) else self._proxy,
            max_line_size=MAX_HEAD,
            max_field_size=MAX_HEAD,
            max_headers=MAX_FIELDS,
        )

    def _connector(self) -> aiohttp.TCPConnector:
        if self._proxy is not None and _is_socks(self._proxy):
            from aiohttp_socks import ProxyConnector

            return ProxyConnector.from_url(
                str(self._proxy.with_scheme(self._proxy.scheme[:6])),
                ssl=self._tls,
                limit=0,
                keepalive_timeout=KEEPALIVE,
            )
        return aiohttp.TCPConnector(
            ssl=self._tls, limit=0, keepalive_timeout=KEEPALIVE, socket_factory=_socket
        )


def shown(url: URL | str) -> str:
    """Return a URL without what may be secret of it."""
    return str(URL(url).with_user(None).with_query(None).with_fragment(None))


def as_written(text: str) -> URL:
    """Return a URL in which what is escaped stays as it is: it may be signed.

    Raises: ValueError: it is none.
    """
    return URL(text, encoded=_WRITTEN.fullmatch(text) is not None)


def _checked(text: str) -> tuple[URL, str | None]:
    """Return a URL, and the credential that was in it."""
    try:
        url = as_written(text)
        port = url.port
    except ValueError as error:
        raise ConfigError(
            f"--url: expected http://HOST/PATH or https://HOST/PATH: {error}"
        ) from None
    if url.scheme not in ("http", "https") or not url.host or not port or _NO_URL.search(text):
        raise ConfigError("--url: expected http://HOST/PATH or https://HOST/PATH")
    credential = None
    if url.user is not None or url.password is not None:
        credential = _basic(url)
    return url.with_user(None).with_fragment(None), credential


def _basic(url: URL) -> str:
    """Return the credential in a URL as a header has it (RFC 7617, section 2)."""
    pair = f"{url.user or ''}:{url.password or ''}"
    return f"Basic {b64encode(pair.encode()).decode()}"


def _assigned(assignments: Sequence[str]) -> list[tuple[str, str]]:
    """Return names, in lower case, and values. What is wrong with a value is not shown."""
    pairs: list[tuple[str, str]] = []
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise ConfigError("--header: expected NAME=VALUE")
        if not _VALUE.fullmatch(value.strip()):
            raise ConfigError(f"--header {name}: expected a value of visible ASCII characters")
        if name.lower() in RESERVED or name.lower().startswith("mcp-param-"):
            raise ConfigError(f"--header {name}: this header is the protocol's own")
        pairs.append((name.lower(), value.strip()))
    return pairs


def _proxy_of(url: URL) -> tuple[URL | None, str | None]:
    """Return the proxy that the environment names for a URL (HTTP_PROXY and its like), and the
    credential for it, if it is one of HTTP."""
    proxies = getproxies()
    kind = next((kind for kind in (url.scheme, "all") if proxies.get(kind)), None)
    if kind is None or proxy_bypass(f"{url.host}:{url.port}"):
        return None, None
    found, name = proxies[kind], f"{kind.upper()}_PROXY"
    try:
        proxy = URL(found if "://" in found else f"http://{found}")
    except ValueError:
        raise ConfigError(f"{name}: expected the URL of an HTTP proxy") from None
    if not proxy.host or not (proxy.scheme in ("http", "https") or _is_socks(proxy)):
        raise ConfigError(f"{name}: expected the URL of an HTTP proxy")
    if _is_socks(proxy) and not _has_socks():
        raise ConfigError(
            f"{name}: SOCKS proxies need the package aiohttp-socks (sessionproxy[socks])"
        )
    if _is_socks(proxy):
        return proxy.with_port(proxy.port or SOCKS_PORT), None
    known = None if proxy.user is None and proxy.password is None else _basic(proxy)
    return proxy.with_user(None), known


def _is_socks(proxy: URL | None) -> bool:
    return proxy is not None and proxy.scheme in ("socks4", "socks4a", "socks5", "socks5h")


def _has_socks() -> bool:
    try:
        import aiohttp_socks as found
    except ImportError:
        return False
    return bool(found)


def _tls(ca: str | None) -> ssl.SSLContext:
    """Return a context that trusts what this machine, or SSL_CERT_FILE, says, and `ca`."""
    from httpx2 import create_ssl_context  # the SDK's own client is made of it

    try:
        context = create_ssl_context()
    except OSError as error:
        raise ConfigError(f"SSL_CERT_FILE: {error.strerror or error}") from None
    if ca is not None:
        try:
            context.load_verify_locations(cafile=ca)
        except ssl.SSLError:
            raise ConfigError(f"--upstream-ca {ca}: expected certificates in PEM") from None
        except OSError as error:
            raise ConfigError(f"--upstream-ca {ca}: {error.strerror}") from None
    return context


def _socket(address: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
    """Return a socket whose peer the kernel notices to be gone without a word (RFC 5482)."""
    made = socket.socket(*address[:3])
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sys.platform == "linux":
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_EVERY)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EVERY)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, DEAD_PEER // PROBE_EVERY)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER * 1000)
    except OSError:
        made.close()
        raise
    return made
