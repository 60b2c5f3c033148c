"""The sealed note that a client carries from one round of a request to the next.

A request that waits for its client's answers is taken up by another request, which names it by its
`requestState` (2026-07-28 basic/patterns/mrtr). What stands in it is the client's to carry and
nobody's to change: it is encrypted and authenticated, and says which session, which exchange, which
round and which parameters it is good for, and until when. Neighbours: `eras.to_handshake` writes
and checks; the frontend asks it which session a request without any key belongs to.
"""

import time
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Final, NamedTuple

import anyio.to_thread
import msgspec

from .. import wire
from ..core.ports import Identity
from ..wire import Bytes

SEALED_FOR: Final = 3600.0
"""Seconds, of the wall clock, for which a sealed note is looked at: as long as a late client is
told what became of its request."""

CANONICAL: Final = 64 * 1024
"""Bytes of a parameter up to which the same value in other words counts as the same."""


class Round(NamedTuple):
    """What a note says."""

    route: str
    owner: str
    key: str
    """Route, owner and key: the session's identity."""
    backend: str
    """Which life of the session's backend."""
    call: int
    number: int
    """Which round of the call, from 1."""
    method: str
    digest: str
    """Of the parameters."""
    expires: float
    """On the wall clock, seconds since the epoch."""
    packed: bool = False
    """It is a backend's own state, with the session that it belongs to."""
    state: str | None = None

    @property
    def identity(self) -> Identity:
        return Identity(self.route, self.owner, self.key)


class Rounds:
    """Seals notes, and reads those that were sealed here and are still good."""

    def __init__(
        self,
        key: bytes,
        now: Callable[[], float] = time.time,  # noqa: TID251 - a note may outlive the process
    ) -> None:
        """`key`: a secret of at least 32 bytes. `now`: the wall clock."""
        self._key = key
        self._now = now
        self._sealer: Sealer | None = None

    async def prepare(self) -> None:
        """Be ready to seal and to read. The SDK takes most of a second to load, so that is done
        when the first client needs it, beside the event loop."""
        if self._sealer is None:
            self._sealer = await anyio.to_thread.run_sync(Sealer, self._key)

    @property
    def _ready(self) -> "Sealer":
        self._sealer = self._sealer or Sealer(self._key)
        return self._sealer

    def expiry(self) -> float:
        """Return until when a note that is sealed now is good."""
        return self._now() + SEALED_FOR

    def seal(self, found: Round) -> str:
        return self._ready.seal(msgspec.json.encode(found))

    def carry(self, identity: Identity, state: str | None) -> str:
        """Return a note that is a backend's own state, and says which session it belongs to."""
        return self.seal(Round(*identity, "", 0, 0, "", "", self.expiry(), True, state))

    def carried(self, note: str) -> str | None:
        """Return the state that `carry` was given; of any other note the note itself."""
        found = self.read(note)
        return found.state if found is not None and found.packed else note

    def read(self, note: str) -> Round | None:
        """Return what a note says; None: not one of ours, altered, or too old."""
        payload = self._ready.unseal(note)
        try:
            found = None if payload is None else msgspec.json.decode(payload, type=Round)
        except msgspec.DecodeError:
            return None
        return found if found is not None and self._now() < found.expires else None

    def identity_of(self, note: str) -> Identity | None:
        """Return the session that a note belongs to; None: it is no good."""
        found = self.read(note)
        return None if found is None else found.identity


class Sealer:
    """The SDK's codec, loaded when one is made."""

    def __init__(self, key: bytes) -> None:
        from mcp.server import request_state as sdk

        self._codec = sdk.AESGCMRequestStateCodec([key])
        self._invalid = sdk.InvalidRequestState

    def seal(self, payload: bytes) -> str:
        return self._codec.seal(payload)

    def unseal(self, note: str) -> bytes | None:
        """Return what was sealed; None: it was not sealed with this key, or was altered."""
        try:
            return self._codec.unseal(note)
        except self._invalid:
            return None


SALIENT: Final = ("name", "uri", "arguments")
"""Parameters that say what a request is about; the others may change from one round to the next."""


def digest_of(params: Bytes | None) -> str:
    """Return a digest of what was asked."""
    found = {name: wire.member(params, name) for name in SALIENT}
    parts = {name: _canonical(value) for name, value in found.items() if value is not None}
    return _digest(parts).hex()


def _canonical(value: Bytes) -> bytes:
    if len(value) > CANONICAL:
        return bytes(value)
    try:
        return msgspec.json.encode(msgspec.json.decode(value), order="sorted")
    except msgspec.DecodeError:  # a number that no machine has
        return bytes(value)


def digest_of_answers(answers: Mapping[str, Bytes]) -> bytes:
    """Return a digest of the answers of a retry, by the keys of their questions."""
    return _digest({key: bytes(value) for key, value in answers.items()})


def _digest(parts: Mapping[str, bytes]) -> bytes:
    digest = blake2b(digest_size=16)
    for name in sorted(parts):
        head = b"%b\0%d\0" % (name.encode(), len(parts[name]))
        digest.update(head)
        digest.update(parts[name])
    return digest.digest()
