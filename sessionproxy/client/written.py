"""Models of what servers wrote, which are written again as they were.

A model has the fields that the SDK knows, and its defaults, which are those of one era; what a
server sent has neither. So what it wrote is kept beside the model, and only what has been changed
in that since is written anew. Neighbours: `client.calls` reads, `client.local` writes.
"""

from collections.abc import Sequence
from typing import Final, TypeVar, cast

import msgspec
from msgspec import Raw
from pydantic import BaseModel

from .. import wire
from ..wire import Bytes

M = TypeVar("M", bound=BaseModel)

_KEPT: Final = "_written"
"""In a model's `__dict__`, so that its copies have it too; pydantic looks for its fields alone."""

_OF_ONE_ERA: Final = frozenset({"result_type", "ttl_ms", "cache_scope"})
"""Fields of 2026-07-28, which models have by default; who bridges the eras puts them on."""


def read(kind: type[M], raw: Bytes) -> M:
    """Return what a server wrote as a model. Raises: ValidationError: it is none such."""
    raw = bytes(raw)
    return _kept(kind.model_validate_json(raw), raw)


def keep_items(page: BaseModel, member: str, items: Sequence[BaseModel]) -> None:
    """Keep what a server wrote of each item of a list that was read."""
    found = wire.member(cast("Bytes | None", vars(page).get(_KEPT)), member)
    raws = [] if found is None else msgspec.json.decode(found, type=list[Raw])
    if len(raws) == len(items):
        for item, raw in zip(items, raws, strict=True):
            _kept(item, bytes(raw))


def _kept(model: M, raw: bytes) -> M:
    vars(model)[_KEPT] = raw
    return model


def written(model: BaseModel) -> bytes:
    """Return a model as it goes over the wire: as its server wrote it, but for the fields that were
    changed since."""
    raw = cast("bytes | None", vars(model).get(_KEPT))
    if raw is None:
        return encoded(model)
    return _changed(raw, type(model).model_validate_json(raw), model) or encoded(model)


def encoded(model: BaseModel) -> bytes:
    """Return a model that was made here as it goes over the wire."""
    unsaid = {name for name in _OF_ONE_ERA if name not in model.model_fields_set}
    return model.model_dump_json(by_alias=True, exclude_none=True, exclude=unsaid).encode()


def _changed(raw: Bytes, before: BaseModel, after: BaseModel) -> bytes | None:
    """Return an object with those fields anew in which two models of it differ; None: they cannot
    be told apart in it."""
    data: bytes | None = bytes(raw)
    for name, field in type(after).model_fields.items():
        old, new = getattr(before, name), getattr(after, name)
        if old == new or data is None:
            continue
        key = field.serialization_alias or name
        value = None if new is None else _value(wire.member(data, key), old, after, name, key)
        data = (
            wire.without_member(data, key) if value is None else wire.with_member(data, key, value)
        )
    return data


def _value(raw: Bytes | None, old: object, model: BaseModel, name: str, key: str) -> bytes | None:
    """Return one field of a model anew. `raw`, `old`: as it was."""
    new: object = getattr(model, name)
    if raw is not None and isinstance(old, BaseModel) and isinstance(new, BaseModel):
        if type(old) is type(new):
            return _changed(raw, old, new)
    dumped = model.model_dump_json(by_alias=True, exclude_none=True, include={name})
    found = wire.member(dumped.encode(), key)
    return None if found is None else bytes(found)
