"""Where an upstream is and how it is spoken to, in the operator's words, checked once.

Neighbours: `launcher` makes one client of it for each session.
"""

import re
import socket
import ssl
import sys
from collections.abc import Sequence
from typing import Final
from urllib.request import getproxies, proxy_bypass

import httpx2

from ...config import Carrier, ConfigError

CONNECT_TIMEOUT: Final = 10.0
WRITE_TIMEOUT: Final = 60.0
"""Seconds for a connection, its TLS included, and for one that takes nothing of what is written.
How long a server may take to answer is the session's business: `start_timeout`, `call_timeout`."""

KEEPALIVE: Final = 4.0
"""Seconds for which an unused connection is kept: many servers close theirs after five, and what is
written at that moment is lost."""

MAX_KEPT: Final = 4
"""Unused connections of one session."""

DEAD_PEER: Final = 30
"""Seconds after which a peer that acknowledges nothing counts as gone: a call may wait for its
answer for hours, and so may a stream."""

PROBE_EVERY: Final = 10

RESERVED: Final = frozenset(
    {
        "accept", "connection", "content-length", "content-type", "host", "last-event-id",
        "mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id", "transfer-encoding",
        "accept-encoding", "content-encoding",
    }
)  # fmt: skip
"""Headers that are the protocol's own."""

_NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Where none is spoken; each client would make one of its own, of some hundred kilobytes."""

_NO_URL: Final = re.compile(r"[\x00-\x20\x7f\ud800-\udfff]")
"""What no URL has in it; the library lets some of it pass, and fails with it later."""

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
        self.url: httpx2.URL = _checked(url)
        self.carrier = carrier
        self.forwards = forwards
        self._headers = _assigned(headers)
        names = {name for name, _ in self._headers}
        if forwards and ("authorization" in names or self.url.userinfo):
            text = "--forward-authorization: --header or --url has a credential already"
            raise ConfigError(text)
        if "user-agent" not in names:
            self._headers.append(("user-agent", "sessionproxy"))
        self._proxy = _proxy_of(self.url)
        if ca is not None and self.url.scheme != "https":
            raise ConfigError("--upstream-ca: --url is not https")
        self._tls = _tls(ca) if self.url.scheme == "https" else _NO_TLS
        try:
            self._transport()
        except ImportError:
            raise ConfigError("ALL_PROXY: SOCKS proxies need the package socksio") from None

    def __repr__(self) -> str:
        return f"<Target {shown(self.url)}>"

    def client(self) -> httpx2.AsyncClient:
        """Return a client with connections, and cookies, of its own."""
        return httpx2.AsyncClient(
            transport=self._transport(),
            headers=[("accept-encoding", "identity"), *self._headers],
            timeout=httpx2.Timeout(
                connect=CONNECT_TIMEOUT, read=None, write=WRITE_TIMEOUT, pool=CONNECT_TIMEOUT
            ),
            follow_redirects=False,
            trust_env=False,  # proxies and certificates are dealt with here
        )

    def _transport(self) -> httpx2.AsyncHTTPTransport:
        return httpx2.AsyncHTTPTransport(
            verify=self._tls,
            trust_env=False,
            limits=httpx2.Limits(
                max_connections=None,
                max_keepalive_connections=MAX_KEPT,
                keepalive_expiry=KEEPALIVE,
            ),
            proxy=self._proxy,
            socket_options=_socket_options(),
        )


def shown(url: httpx2.URL | str) -> str:
    """Return a URL without what may be secret of it."""
    return str(httpx2.URL(url).copy_with(username=None, password=None, query=None, fragment=None))


def _checked(text: str) -> httpx2.URL:
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise ConfigError(
            f"--url: expected http://HOST/PATH or https://HOST/PATH: {error}"
        ) from None
    if url.scheme not in ("http", "https") or not url.host or _NO_URL.search(text):
        raise ConfigError("--url: expected http://HOST/PATH or https://HOST/PATH")
    return url.copy_with(fragment=None)


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


def _proxy_of(url: httpx2.URL) -> httpx2.Proxy | None:
    """Return the proxy that the environment names for a URL (HTTP_PROXY and its like)."""
    proxies = getproxies()
    found = proxies.get(url.scheme) or proxies.get("all")
    host = url.host if url.port is None else f"{url.host}:{url.port}"
    if not found or proxy_bypass(host):
        return None
    try:
        return httpx2.Proxy(found if "://" in found else f"http://{found}")
    except (ValueError, httpx2.InvalidURL):
        raise ConfigError(
            f"{url.scheme.upper()}_PROXY: expected the URL of an HTTP proxy"
        ) from None


def _tls(ca: str | None) -> ssl.SSLContext:
    """Return a context that trusts what this machine, or SSL_CERT_FILE, says, and `ca`."""
    try:
        context = httpx2.create_ssl_context()
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


def _socket_options() -> list[tuple[int, int, int]]:
    """Have the kernel notice a peer that is gone without a word."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if sys.platform == "linux":
        options += [
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_EVERY),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EVERY),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, DEAD_PEER // PROBE_EVERY),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER * 1000),
        ]
    return options
