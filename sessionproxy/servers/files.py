"""A file of JSON or TOML, read. What is wrong with it is told with line and column.

Neighbours: `configuration` knows what stands in it.
"""

import json
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn, cast

from ..config import ConfigError
from .wording import shown

_TOML_PLACE: Final = re.compile(r"(.*) \(at line (\d+), column (\d+)\)", re.DOTALL)


_HALF: Final = re.compile("[\ud800-\udfff]")
"""Of a character outside the first plane. What has one cannot be sent to anybody."""


class _Doubled(dict[str, object]):
    """An object in which a name stands twice."""

    name = ""


def read(path: str | os.PathLike[str]) -> dict[str, object]:
    """Return what stands in a file: TOML where its name ends so, else JSON.

    Raises: ConfigError: it cannot be read, or has no object at its root.
    """
    source = os.fspath(path)
    try:
        text = Path(source).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: expected text in UTF-8") from None
    parse = _toml if Path(source).suffix.lower() == ".toml" else _json
    try:
        root = parse(text)
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    if not isinstance(root, dict):
        raise ConfigError(f'{source}: expected an object, such as {{"mcpServers": ...}}')
    return cast("dict[str, object]", root)


def _toml(text: str) -> object:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = _TOML_PLACE.fullmatch(str(error))
        if place is None:  # at the end of the document
            raise
        raise ValueError(f"line {place[2]}, column {place[3]}: {place[1]}") from None


def _json(text: str) -> object:
    """Raises: ValueError: it is not JSON, or a name stands twice in an object, or a string is none.

    msgspec would name a byte for the first, and keep the last for the second.
    """
    try:
        root: object = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    for mistake in _mistakes(root):
        raise ValueError(mistake.removeprefix("."))
    return root


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    seen: set[str] = set()
    doubled = _Doubled(members)
    doubled.name = next(name for name, _ in pairs if name in seen or seen.add(name))
    return doubled


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _mistakes(root: object) -> Iterator[str]:
    """Yield what is wrong with values that are JSON all the same, and where."""
    left: list[tuple[str, object]] = [("", root)]
    while left:
        where, value = left.pop()
        if isinstance(value, _Doubled):
            yield f"{where}.{shown(value.name)}: stands there twice"
        if isinstance(value, dict):
            for name, item in cast("dict[str, object]", value).items():
                key = f"{where}.{shown(name)}"
                left += [(key, item), (key, name)]
        elif isinstance(value, list):
            items = cast("list[object]", value)
            left += [(f"{where}[{index}]", item) for index, item in enumerate(items)]
        elif isinstance(value, str) and _HALF.search(value):
            yield f"{where}: expected text; \\uD800 to \\uDFFF stand in pairs only"
