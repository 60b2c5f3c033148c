"""The few members inside `params` that a proxy has to read or replace.

Everything else in them stays as it was written. Neighbours: `core.relay`.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw

from ..errors import InvalidMessage
from .message import Bytes

_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])

LARGE: Final = 256 * 1024
"""Bytes of params from which on they are not taken apart: an object of a million members takes
seconds to read, and skipping what is not looked for takes a fiftieth of that."""
_META: Final = "_meta"
_TOKEN: Final = "progressToken"


def members(params: Bytes | None) -> dict[str, Raw]:
    """Return the members of an object, each still encoded; none where it is no object.

    None either where it is nested too deep to read from here, though it was not for `decode`:
    the depth that can be read shrinks with that of the stack.
    """
    try:
        return _read(params)
    except InvalidMessage:
        return {}


def _read(params: Bytes | None) -> dict[str, Raw]:
    """Raises: InvalidMessage: nested too deep to read from here."""
    if params is None:
        return {}
    try:
        return _OBJECT.decode(params)
    except msgspec.DecodeError:
        return {}
    except RecursionError:
        raise InvalidMessage("params is nested too deep") from None


def rebuilt(fields: Mapping[str, Bytes]) -> bytes:
    """Return the object with these members, each as it was encoded."""
    return msgspec.json.encode({k: v if isinstance(v, Raw) else Raw(v) for k, v in fields.items()})


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


class _Large(msgspec.Struct):
    """What is looked for in large params."""

    meta: Raw | msgspec.UnsetType = msgspec.field(name=_META, default=msgspec.UNSET)
    task: Raw | msgspec.UnsetType = msgspec.UNSET


_LARGE: Final = msgspec.json.Decoder(_Large)


def _with_token_in_place(params: bytes, token: bytes) -> tuple[bytes, bytes, bool] | None:
    """As `with_progress_token`, by exchanging the encoded `_meta` where it stands.

    The same bytes may stand elsewhere, so it is looked whether the right ones were exchanged.

    Raises: InvalidMessage: they were not found, are too large, or stand too deep.
    """
    found = _large(params)
    if found is None or isinstance(found.meta, msgspec.UnsetType):
        return None
    old = bytes(found.meta)
    if len(old) > LARGE:
        raise InvalidMessage("_meta is too large")
    meta = _read(found.meta)
    if _TOKEN not in meta:
        return None
    new = rebuilt({**meta, _TOKEN: token})
    for at in (params.rfind(old), params.find(old)):
        changed = params[:at] + new + params[at + len(old) :]
        now = _large(changed)
        if now is not None and bytes(now.meta or b"") == new:
            return changed, bytes(meta[_TOKEN]), found.task is not msgspec.UNSET
    raise InvalidMessage("params has its _meta several times")


def _large(params: bytes) -> _Large | None:
    try:
        return _LARGE.decode(params)
    except msgspec.DecodeError:
        return None
    except RecursionError:
        raise InvalidMessage("params is nested too deep") from None


def progress_of(params: Bytes | None) -> tuple[int, float, dict[str, Raw]] | None:
    """Return token, progress and all members of a progress notification towards the client.

    None where it has no token that the proxy could have given out, or no number as progress.
    """
    fields = members(params)
    token, progress = bytes(fields.get(_TOKEN, b"")), bytes(fields.get("progress", b""))
    if not token.isdigit() or len(token) > 18:
        return None
    try:
        return int(token), float(progress), fields
    except ValueError:
        return None


def cancelled_request_id(params: Bytes | None) -> tuple[bytes, dict[str, Raw]] | None:
    """Return the id a cancellation names, and all its members; None where it names none."""
    fields = members(params)
    named = fields.get("requestId")
    return None if named is None else (bytes(named), fields)


def text_member(value: Bytes, name: str) -> str | None:
    """Return the string member `name` of an encoded object; None where there is no such."""
    raw = members(value).get(name)
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
