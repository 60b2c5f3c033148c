"""Who may ask at all: Host, Origin, and what other proxies have added.

Against DNS rebinding (2025-11-25 basic/transports#security-warning): a page of another site can
reach a loopback address under its own name, but then its name stands in Host and Origin. Values
are parsed and compared whole, never by prefix. Neighbours: `frontend` asks before it reads a body.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import urlsplit

from ..config import ConfigError
from ..errors import ForwardedRefused, HostRefused, OriginRefused
from .request import Headers

_HOST: Final = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>\d{1,5}))?")
_FORWARDED: Final = frozenset({b"forwarded", b"via"})
_CACHE: Final = 256
"""Verdicts remembered: real clients use one or two values, and others must not fill the memory."""


def is_loopback(name: str) -> bool:
    """Return whether a host name or address (IPv6 also in brackets) means this machine alone."""
    if name == "localhost":
        return True
    address = _address(name)
    return address is not None and address.is_loopback


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None


class Guard:
    """Lets requests in by their headers. One for every route, health included."""

    def __init__(
        self,
        *,
        local: bool,
        authenticated: bool = False,
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
    ) -> None:
        """`local`: it serves this machine alone: loopback names are hosts and origins, and what
        came through another proxy is refused, unless everybody is `authenticated`. Else it answers
        to addresses in numbers too, which cannot be rebound. `hosts`: `NAME` (any port) or
        `NAME:PORT`. `origins`: `SCHEME://HOST[:PORT]`.

        Raises: ConfigError: one of them is malformed.
        """
        self._local = local
        self._forwarded = authenticated or not local
        self._hosts = frozenset(map(_checked_host, hosts))
        self._origins = frozenset(map(_checked_origin, origins))
        self._host_verdicts: dict[bytes, bool] = {}
        self._origin_verdicts: dict[bytes, bool] = {}

    def check(self, headers: Headers) -> None:
        """Raises: HostRefused, OriginRefused, ForwardedRefused."""
        host = headers.get(b"host", b"")
        if not _remembered(self._host_verdicts, host, self._knows_host):
            name = host[:100].decode("latin-1")
            raise HostRefused(f"host {name!r} is not served here; --allow-host names others")
        origin = headers.get(b"origin")
        if origin is not None and not _remembered(
            self._origin_verdicts, origin, self._knows_origin
        ):
            raise OriginRefused("the Origin header is not allowed")
        if not self._forwarded:
            for name in headers:
                if name in _FORWARDED or name.startswith(b"x-forwarded-"):
                    raise ForwardedRefused(
                        "requests that came through another proxy are refused on loopback, "
                        "where everybody would be the same owner"
                    )

    def _knows_host(self, value: bytes) -> bool:
        found = _HOST.fullmatch(value.decode("latin-1").lower())
        if found is None:
            return False
        name = found["name"].removesuffix(".")
        if name in self._hosts or found[0] in self._hosts:
            return True
        # `localhost` is nobody's to rebind either.
        return is_loopback(name) or (not self._local and _address(name) is not None)

    def _knows_origin(self, value: bytes) -> bool:
        text = value.decode("latin-1").lower()
        if text in self._origins:
            return True
        if not self._local:
            return False
        scheme, _, rest = text.partition("://")
        found = _HOST.fullmatch(rest)
        return (
            scheme in ("http", "https")
            and found is not None
            and is_loopback(found["name"].removesuffix("."))
        )


def _remembered(verdicts: dict[bytes, bool], value: bytes, judge: Callable[[bytes], bool]) -> bool:
    verdict = verdicts.get(value)
    if verdict is None:
        verdict = judge(value)
        if len(verdicts) < _CACHE:
            verdicts[value] = verdict
    return verdict


def _checked_host(text: str) -> str:
    if _HOST.fullmatch(text.lower()) is None:
        raise ConfigError(f"--allow-host {text}: expected NAME or NAME:PORT")
    return text.lower()


def _checked_origin(text: str) -> str:
    parts = urlsplit(text.lower())
    if not parts.scheme or not parts.netloc or parts.path not in ("", "/") or parts.query:
        raise ConfigError(f"--allow-origin {text}: expected SCHEME://HOST[:PORT]")
    return f"{parts.scheme}://{parts.netloc}"
