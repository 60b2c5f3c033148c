"""How a request finds its session: ids that are minted here, and keys that clients bring along.

An id is versioned and authenticated: it says which node and which boot minted it, and its MAC
covers route and owner too, so an id is worth nothing to another owner, on another route, or made
up; all that is checked before anything is looked up. Other keys are names that a client gives its
conversation, and count only together with its owner. Neighbours: `core.manager` mints and checks;
the frontend finds the keys of a request; `assembly` hands in the secret.
"""

import hmac
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable
from hashlib import blake2b
from typing import Final, NamedTuple

from ..errors import ConflictingKeys, MissingKey
from .ports import Identity

_VERSION: Final = 1
_NODE: Final = 4
_EPOCH: Final = 4
_RANDOM: Final = 16
_MAC: Final = 16
_HEAD: Final = 1 + _NODE + _EPOCH + _RANDOM
ID_LENGTH: Final = -(-(_HEAD + _MAC) * 4 // 3)
"""Characters of an id, URL-safe base64 without padding: all in 0x21 to 0x7E, as the
specification wants (2025-11-25 basic/transports#session-management)."""

KEY_SIZE: Final = 32
"""Bytes of the MAC key."""


class SessionIds:
    """Mints and checks the ids of one node. 128 random bits and a MAC of 128 bits each."""

    def __init__(
        self,
        key: bytes,
        *,
        node: bytes = b"\0" * _NODE,
        epoch: bytes | None = None,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """`key` is a secret of `KEY_SIZE` bytes; `node` and `epoch` have 4 bytes each.

        Raises: ValueError: one of them has another size.
        """
        epoch = epoch if epoch is not None else random(_EPOCH)
        if (len(key), len(node), len(epoch)) != (KEY_SIZE, _NODE, _EPOCH):
            raise ValueError("the key has 32 bytes, node and epoch have 4 each")
        self._key = key
        self._prefix = bytes((_VERSION,)) + node + epoch
        self._random = random

    def mint(self, route: str, owner: str) -> str:
        """Return a new id, bound to `route` and `owner`."""
        head = self._prefix + self._random(_RANDOM)
        return _text_of(head + self._mac(head, route, owner))

    def authentic(self, identity: Identity) -> bool:
        """Return whether the key of `identity` was minted, by this key, for its route and owner."""
        text = identity.key
        if len(text) != ID_LENGTH:
            return False
        try:
            raw = _raw_of(text)
        except (Base64Error, ValueError):
            return False
        if _text_of(raw) != text:  # base64 has several texts for the same bytes
            return False
        head, mac = raw[:_HEAD], raw[_HEAD:]
        if head[:1] != self._prefix[:1]:
            return False
        return hmac.compare_digest(mac, self._mac(head, identity.route, identity.owner))

    def minted(self, route: str, owner: str, text: str) -> bool:
        """Return whether `text` was minted, by this key, for this owner on this route."""
        return self.authentic(Identity(route, owner, text))

    def minted_before(self, route: str, owner: str, text: str) -> bool:
        """Return whether `text` was minted so, but not since this process began."""
        if not self.minted(route, owner, text):
            return False
        return not _raw_of(text).startswith(self._prefix)

    def _mac(self, head: bytes, route: str, owner: str) -> bytes:
        bound = b"\0".join((head, route.encode(), owner.encode()))
        return blake2b(bound, key=self._key, digest_size=_MAC).digest()


def _text_of(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _raw_of(text: str) -> bytes:
    """Raises: Base64Error, ValueError: it is no text of anything."""
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def label_of(identity: Identity) -> str:
    """Return a short name for logs, from which the id cannot be had back."""
    text = "\0".join(identity).encode()
    return blake2b(text, digest_size=4).hexdigest()


CONVERSATION: Final = "c:"
PRINCIPAL: Final = "p:"
"""What session keys begin with that no id of ours is: a `:` is in none. So a modern request never
reaches a handshake client's session by an id that it carries."""


class Keys(NamedTuple):
    """What a request says of the conversation it belongs to; None: nothing in that place."""

    handle: str | None = None
    path: str | None = None
    header: str | None = None
    meta: str | None = None
    cookie: str | None = None

    def conversation(self, *, default: bool) -> str:
        """Return the session key of the conversation; that of the owner's default one, where the
        request names none and `default` allows it.

        Raises:
            ConflictingKeys: it names two.
            MissingKey: it names none.
        """
        names = {name for name in self if name is not None}
        if len(names) > 1:
            places = [place for place, name in self._asdict().items() if name is not None]
            raise ConflictingKeys(f"{' and '.join(places)} name different conversations")
        if not names and not default:
            raise MissingKey("the request does not say which conversation it belongs to")
        return CONVERSATION + (names.pop() if names else "")
