"""What a result says of the session that it came from, in `_meta` and in words.

Clients of the modern era have no session of the protocol's, so nothing else tells them which one
they have, and for how long. Neighbours: `frontend.modern` decides; `frontend.reply` writes.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from .. import wire
from ..wire import Bytes
from ..wire.envelope import text
from .loss import with_text
from .problems import SESSION_KEY

_KEY: Final = SESSION_KEY.encode()
_META: Final = b'"%b":' % _KEY
_FRONT: Final = b'{"resultType":"complete","_meta":{"'
"""What `eras.results` begins a result with that it has dressed."""

_ASKS: Final = b'"input_required"'


class Note(NamedTuple):
    """What is to be said."""

    meta: bytes
    """An object, encoded."""
    text: str = ""
    """For the model; nothing where it is empty."""
    carry: Callable[[str | None], str] | None = None
    """Makes the state with which a request can be taken up of the backend's own, where its client
    has nothing else by which it would come back to the same session."""


def about(*, idle: float | None, default: bool = False, handle: str | None = None) -> bytes:
    """Return what `_meta` says of a session, encoded. `idle`: seconds; None: no limit."""
    found: dict[str, object] = {}
    if handle is not None:
        found["handle"] = handle
    if default:
        found["default"] = True
    if idle is not None:
        found["idleTimeout"] = idle
    return msgspec.json.encode(found)


def noted(result: Bytes, note: Note, *, tool: bool) -> Bytes:
    """Return a result with a note on it, as far as it has a place for it."""
    if note.carry is not None and _ASKS in bytes(result):
        result = _carried(result, note.carry)
    if tool and note.text:
        content = with_text(bytes(wire.member(result, "content") or b""), note.text)
        if content is not None:
            result = wire.with_member(result, "content", content) or result
    return _with_meta(bytes(result), note.meta)


def _with_meta(result: bytes, meta: bytes) -> bytes:
    """Put it in where it costs nothing: a large result is not taken apart for it."""
    if meta == b"{}":
        return result
    if _KEY not in result and b"\\u" not in result:
        if result.startswith(_FRONT):
            at = len(_FRONT) - 1
            return b"".join((result[:at], _META, meta, b",", result[at:]))
        if result[:1] == b"{" and b'"_meta"' not in result:
            rest = result[1:].lstrip()
            comma = b"" if rest[:1] == b"}" else b","
            return b"".join((b'{"_meta":{', _META, meta, b"}", comma, rest))
    old = bytes(wire.member(result, "_meta") or b"{}")
    new = wire.with_member(old if old.startswith(b"{") else b"{}", SESSION_KEY, meta)
    return result if new is None else wire.with_member(result, "_meta", new) or result


def _carried(result: Bytes, carry: Callable[[str | None], str]) -> Bytes:
    fields = wire.members(result)
    if text(fields.get("resultType")) != "input_required":
        return result
    state = carry(text(fields.get("requestState")))
    return wire.rebuilt({**fields, "requestState": msgspec.json.encode(state)})
