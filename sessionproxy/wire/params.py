"""The few members inside `params` and results that a proxy has to read or replace.

Everything else in them stays as it was written. What could have very many members is not taken
apart: they are skipped over, and what is replaced is exchanged where it stands. Neighbours:
`core.relay`, `core.session`, `core.memory`, `frontend.loss`.
"""

import functools
import secrets
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw

from ..errors import InvalidMessage
from .message import MAX_ID, Bytes

_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])

LARGE: Final = 256 * 1024
"""Bytes up to which an object is taken apart without a further look."""

MANY: Final = LARGE // 5
"""Colons, and so members at most, with which a larger one still is: as many as fit into `LARGE`.
A million members take seconds to read and hundreds of megabytes; skipping over them takes a
hundredth of that."""

_META: Final = "_meta"
_TOKEN: Final = "progressToken"


def members(value: Bytes | None) -> dict[str, Raw]:
    """Return the members of an object, each still encoded; none where it is no object.

    None either where it has too many, or is nested too deep to read from here, though it was not
    for `decode`: the depth that can be read shrinks with that of the stack.
    """
    try:
        return _read(value)
    except InvalidMessage:
        return {}


def _read(value: Bytes | None) -> dict[str, Raw]:
    """Raises: InvalidMessage: too many members, or nested too deep to read from here."""
    if value is None:
        return {}
    if len(value) > LARGE and _has_many(value):
        raise InvalidMessage("too many members")
    try:
        return _OBJECT.decode(value)
    except msgspec.DecodeError:
        return {}
    except RecursionError:
        raise InvalidMessage("nested too deep") from None


def _has_many(value: Bytes) -> bool:
    """Return whether a large object could have more than `MANY` members; a cheap look."""
    return bytes(value).count(b":") > MANY


def member(value: Bytes | None, name: str) -> Raw | None:
    """Return one member of an object, still encoded; the others are skipped over.

    None where there is no such, where it is no object, or nested too deep to read from here.
    """
    try:
        return None if value is None else _look(value, name)
    except InvalidMessage:
        return None


def _look(value: Bytes, name: str) -> Raw | None:
    """Raises: InvalidMessage: nested too deep to read from here."""
    try:
        found: tuple[object, ...] = msgspec.structs.astuple(_looking_for(name).decode(value))
    except msgspec.DecodeError:
        return None
    except RecursionError:
        raise InvalidMessage("nested too deep") from None
    return found[0] if isinstance(found[0], Raw) else None


@functools.cache
def _looking_for(name: str) -> msgspec.json.Decoder[msgspec.Struct]:
    field = msgspec.field(name=name, default=msgspec.UNSET)
    return msgspec.json.Decoder(
        msgspec.defstruct("_Looked", [("found", Raw | msgspec.UnsetType, field)], gc=False)
    )


def rebuilt(fields: Mapping[str, Bytes]) -> bytes:
    """Return the object with these members, each as it was encoded."""
    return msgspec.json.encode({k: v if isinstance(v, Raw) else Raw(v) for k, v in fields.items()})


def with_member(value: Bytes, name: str, new: bytes) -> bytes | None:
    """Return the object with its member `name` as `new`, added where there was none.

    None where it is no object, is nested too deep, or has too many members to find that one.
    """
    data = bytes(value)
    if data[:1] != b"{":
        return None
    try:
        if len(data) <= LARGE or not _has_many(data):
            return rebuilt({**_read(data), name: new})
        old = _look(data, name)
    except InvalidMessage:
        return None
    if old is None:
        return b"".join((b"{", msgspec.json.encode(name), b":", new, b",", data[1:]))
    return _exchanged(data, name, bytes(old), new)


def _exchanged(data: bytes, name: str, old: bytes, new: bytes) -> bytes | None:
    """Return the object with its member `name` exchanged where it stands; None if not found.

    The same bytes may stand elsewhere, so it is looked whether the right ones were exchanged.

    Raises: InvalidMessage: nested too deep to look.
    """
    for at in (data.rfind(old), data.find(old)):
        changed = b"".join((data[:at], new, data[at + len(old) :]))
        now = _look(changed, name)
        if now is not None and bytes(now) == new:
            return changed
    return None


def without_member(value: Bytes, name: str) -> bytes | None:
    """Return the object without its member `name`, which it has.

    None where it is no object, is nested too deep, or has too many members to find that one.
    """
    data = bytes(value)
    try:
        if len(data) <= LARGE or not _has_many(data):
            fields = _read(data)
            return None if fields.pop(name, None) is None else rebuilt(fields)
        old = _look(data, name)
        return None if old is None else _cut_out(data, name, bytes(old))
    except InvalidMessage:
        return None


def _cut_out(data: bytes, name: str, old: bytes) -> bytes | None:
    """Return the object without this member; None if its name is spelled in an unusual way.

    Raises: InvalidMessage: nested too deep to look.
    """
    mark = b'"%b"' % secrets.token_hex(16).encode()
    marked = _exchanged(data, name, old, mark)  # the right one: the same may stand elsewhere
    if marked is None:
        return None
    head, _, tail = marked.partition(mark)
    head, tail, key = head.rstrip(), tail.lstrip(), msgspec.json.encode(name)
    if not head.endswith(b":") or not head[:-1].rstrip().endswith(key):
        return None
    head = head[:-1].rstrip().removesuffix(key).rstrip()
    if head.endswith(b","):
        return head.removesuffix(b",") + tail
    return head + tail.removeprefix(b",")


def carries_progress_token(params: Bytes) -> bool:
    """Return whether `params` could have a progress token; a cheap look, wrong only with True.

    A key may also be spelled with escapes; those of ASCII letters all begin with `\\u00`.
    """
    data = bytes(params)
    return b"progressToken" in data or b"\\u00" in data


def with_progress_token(params: Bytes, token: bytes) -> tuple[bytes, bytes, bool] | None:
    """Return `params` with its progress token replaced, the old token, and whether it is a task.

    None where it has none (2025-11-25 basic/utilities/progress). A task's token stays valid
    after the request is answered (2025-11-25 basic/utilities/tasks#progress).

    Raises: InvalidMessage: nested too deep to find it, and the client's own must not go on.
    """
    if len(params) > LARGE:
        return _with_token_in_place(bytes(params), token)
    fields = _read(params)
    meta = _read(fields.get(_META))
    old = meta.get(_TOKEN)
    if old is None:
        return None
    fields[_META] = Raw(rebuilt({**meta, _TOKEN: token}))
    return rebuilt(fields), bytes(old), "task" in fields


def _with_token_in_place(params: bytes, token: bytes) -> tuple[bytes, bytes, bool] | None:
    """As `with_progress_token`, by exchanging the encoded `_meta` where it stands.

    Raises: InvalidMessage: it was not found, is too large, or stands too deep.
    """
    found = _look(params, _META)
    if found is None:
        return None
    if len(found) > LARGE:
        raise InvalidMessage("_meta is too large")
    meta = _read(found)
    if _TOKEN not in meta:
        return None
    changed = _exchanged(params, _META, bytes(found), rebuilt({**meta, _TOKEN: token}))
    if changed is None:
        raise InvalidMessage("params has its _meta several times")
    return changed, bytes(meta[_TOKEN]), _look(params, "task") is not None


def progress_of(params: Bytes | None) -> tuple[int, float, dict[str, Raw]] | None:
    """Return token, progress and all members of a progress notification towards the client.

    None where it has no token that the proxy could have given out, no number as progress, or too
    many members.
    """
    fields = members(params)
    token, progress = bytes(fields.get(_TOKEN, b"")), bytes(fields.get("progress", b""))
    if not token.isdigit() or len(token) > 18:
        return None
    try:
        return int(token), float(progress), fields
    except ValueError:
        return None


def cancelled_request_id(params: Bytes | None) -> bytes | None:
    """Return the id a cancellation names; None where it names none that a request can have."""
    named = member(params, "requestId")
    return None if named is None or len(named) > MAX_ID else bytes(named)


def text_member(value: Bytes, name: str) -> str | None:
    """Return the string member `name` of an encoded object; None where there is no such."""
    raw = member(value, name)
    try:
        return None if raw is None else msgspec.json.decode(raw, type=str)
    except msgspec.DecodeError:
        return None


def id_value(raw: bytes) -> str | int | None:
    """Return an id decoded, so that two spellings of one string are equal; 1 and "1" are not."""
    try:
        return msgspec.json.decode(raw, type=str | int)
    except msgspec.DecodeError:
        return None
