"""Where a request says which conversation it belongs to (DESIGN 6).

In its path, in a header, in `_meta` under a name that a known client uses, in a cookie of ours; the
operator says which of these count. Neighbours: `frontend.modern`, and `frontend.handshake` for
handshake clients whose sessions are shared.
"""

import enum
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from msgspec import UnsetType

from .. import wire
from ..config import OUR_META_KEY, Affinity
from ..core.binding import CONVERSATION, PRINCIPAL, Keys
from ..core.ports import Identity
from ..errors import ConflictingKeys, InvalidMessage, InvalidRequestState, MissingKey
from ..http import Headers, header_of
from ..wire import Message
from ..wire.envelope import KNOWN, KNOWN_SIZE, text

logger: Final = logging.getLogger(__name__)

COOKIE: Final = "__Host-sessionproxy"
"""`__Host-`: the browser takes it over TLS alone and gives it to no other host (RFC 6265bis)."""

COOKIE_FORM: Final = b"%b=%b; Path=/; Secure; HttpOnly; SameSite=Strict"

MAX_KEY: Final = 256
"""Characters of a key: known clients use up to 40."""

PATH_KEY: Final = re.compile(r"[A-Za-z0-9._~-]{1,256}")

UNGUESSABLE: Final = 22
"""Characters of a key from which on it may stand for its user: 128 bits in base64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Which places count, and how conversations are told apart."""

    affinity: Affinity
    header: str | None = None
    meta: Sequence[str] = ()
    cookie: bool = False
    default: bool = True
    """Requests without any key belong to the owner's default conversation."""
    unguessable: bool = False
    """Nobody is authenticated: only keys that cannot be guessed count, and no default."""
    handles: bool = False
    """Tools have an argument for it."""
    path: str = "/mcp"
    """Of the endpoint."""

    def __str__(self) -> str:
        """Say where a client can name its conversation."""
        ways = [f"in the path ({self.path}/s/NAME)"]
        if self.handles:
            ways.insert(0, "in the session argument of a tool")
        if self.header is not None:
            ways.append(f"in the header {self.header}")
        if self.meta:
            ways.append(f"in _meta ({self.meta[0]})")
        said = " or ".join((", ".join(ways[:-1]), ways[-1])) if len(ways) > 1 else ways[0]
        least = f"; a name has at least {UNGUESSABLE} characters, chosen at random"
        return said + (least if self.unguessable else "")


class Way(enum.Enum):
    """How a request came to its conversation."""

    NAMED = "named"
    """It has a key of it."""
    RETRY = "retry"
    """It goes on with one."""
    OPENED = "opened"
    """It has none, and begins one."""
    DEFAULT = "default"
    """It has none; there is one for all such of its owner."""
    PRINCIPAL = "principal"
    """Its owner has just one."""


class Bound(NamedTuple):
    """Which conversation a request belongs to."""

    key: str
    """Of its session."""
    way: Way
    cookie: bytes | None = None
    """What its client is to be given to come back with."""

    @property
    def name(self) -> str:
        """What the conversation is called, without what tells it from the protocol's sessions."""
        return self.key.removeprefix(CONVERSATION)


class Given(NamedTuple):
    """What the head of a request says."""

    keys: Keys
    bound: Bound | None
    """The conversation that it names."""


class KeyFinder:
    """Finds the keys of requests."""

    def __init__(
        self,
        places: Places,
        authentic: Callable[[str, str], bool] = lambda owner, key: False,
        mint: Callable[[str], str] = lambda owner: "",
    ) -> None:
        """`authentic`: whether a key was minted here for an owner; `mint`: makes one."""
        self._places = places
        self._header = None if places.header is None else places.header.lower().encode("latin-1")
        self._authentic = authentic
        self._mint = mint
        self._known = lru_cache(KNOWN)(self._named_by)

    def bind(
        self,
        owner: str,
        given: Given,
        meta: bytes | None,
        *,
        handle: str | None = None,
        opens: bool = False,
        stateless: bool = False,
        retry: Identity | None = None,
    ) -> Bound:
        """Return which conversation a request belongs to.

        `given`: what its head says. `meta`: its `_meta`, encoded. `handle`: one that it was called
        with. `opens`: without any key it begins a conversation of its own. `stateless`: without any
        key it needs none. `retry`: the session that it says it goes on with.

        Raises: ConflictingKeys, MissingKey, InvalidMessage, InvalidRequestState.
        """
        if self._places.affinity is Affinity.PRINCIPAL:
            return Bound(PRINCIPAL, Way.PRINCIPAL)
        keys, (name, meant) = given.keys, self._from_meta(meta)
        if not meant and (given.bound is not None or handle is not None):
            name = None  # what a client sends by itself gives way to what it was told
        if name is not None or handle is not None:
            keys = keys._replace(meta=self._usable(owner, name, "_meta"), handle=handle)
        elif given.bound is not None and retry is None:
            return given.bound
        if retry is not None:
            return Bound(self._retried(owner, keys, retry), Way.RETRY)
        if any(name is not None for name in keys):
            return Bound(keys.conversation(default=False), Way.NAMED)
        if (opens or self._places.cookie) and not stateless:
            return self._opened(owner)
        if not self._places.default and not stateless:
            raise MissingKey(
                "the request does not say which conversation it belongs to, and there is no "
                f"default one: name one {self._places}"
            )
        return Bound(keys.conversation(default=True), Way.DEFAULT)

    def _opened(self, owner: str) -> Bound:
        name = self._mint(owner)
        cookie = COOKIE_FORM % (COOKIE.encode(), name.encode()) if self._places.cookie else None
        return Bound(CONVERSATION + name, Way.OPENED, cookie)

    def _retried(self, owner: str, keys: Keys, retry: Identity) -> str:
        if retry.owner != owner:
            raise InvalidRequestState("another owner's")  # told as one that is made up
        named = any(name is not None for name in keys)
        if named and keys.conversation(default=False) != retry.key:
            raise ConflictingKeys("the requestState belongs to another conversation")
        return retry.key

    def given(self, owner: str, headers: Headers, path_key: str | None) -> Given:
        """Return what the head of a request says. Raises: InvalidMessage, ConflictingKeys."""
        if self._places.affinity is Affinity.PRINCIPAL:
            return Given(Keys(), None)
        keys = Keys(
            path=self._usable(owner, path_key, "path"),
            header=self._usable(owner, self._from_header(headers), "header"),
            cookie=self._from_cookie(owner, headers),
        )
        if all(name is None for name in keys):
            return Given(keys, None)
        return Given(keys, Bound(keys.conversation(default=False), Way.NAMED))

    def _usable(self, owner: str, key: str | None, where: str) -> str | None:
        if key is None:
            return None
        if not key or len(key) > MAX_KEY or not key.isprintable():
            raise InvalidMessage(f"the name in the {where} has 1 to {MAX_KEY} printable characters")
        if self._places.unguessable and len(key) < UNGUESSABLE and not self._authentic(owner, key):
            raise InvalidMessage(
                "where users are not told apart, the name of a conversation has at least "
                f"{UNGUESSABLE} characters, chosen at random"
            )
        return key

    def _from_header(self, headers: Headers) -> str | None:
        return None if self._header is None else header_of(headers, self._header)

    def _from_meta(self, meta: bytes | None) -> tuple[str | None, bool]:
        """Return the name in `_meta`, and whether it is there to name the conversation here.

        Raises: InvalidMessage: it is, and is none.
        """
        if meta is None or not self._places.meta:
            return None, False
        return self._known(meta) if len(meta) <= KNOWN_SIZE else self._named_by(meta)

    def _named_by(self, encoded: bytes) -> tuple[str | None, bool]:
        meta = wire.members(encoded)
        for name in self._places.meta:
            value = meta.get(name)
            if name == OUR_META_KEY and value is not None and not text(value):
                raise InvalidMessage(f"{name} is a name: a string that is not empty")
            if value is None and "." in name and "/" not in name:
                outer, _, inner = name.partition(".")
                value = wire.members(meta.get(outer)).get(inner)
            found = text(value)
            if found:
                return found, name == OUR_META_KEY
        return None, False

    def _from_cookie(self, owner: str, headers: Headers) -> str | None:
        """Return the key of our cookie; one that is forged or another owner's counts as none."""
        if not self._places.cookie:
            return None
        for pair in (header_of(headers, b"cookie") or "").split(";"):
            name, _, value = pair.strip().partition("=")
            if name == COOKIE:
                return value if self._authentic(owner, value) else None
        return None


def is_conversation(key: str) -> bool:
    return key.startswith((CONVERSATION, PRINCIPAL))


def log_names(message: Message, headers: Headers) -> None:
    """Tell the operator what a client sends that could name its conversation: names, no values."""
    if not logger.isEnabledFor(logging.DEBUG):
        return
    params = None if isinstance(message.params, UnsetType) else message.params
    in_meta = ", ".join(sorted(wire.members(wire.member(params, "_meta")))) or "nothing"
    in_head = ", ".join(sorted(name.decode("latin-1") for name in headers))
    logger.debug("%s has in _meta: %s; headers: %s", message.method, in_meta, in_head)
