"""The JSON Schema of the file, for editors: made of the same structs that read it.

It lets pass all that the proxy does; some mistakes only the proxy finds. Neighbours:
`scripts/schema` writes it to the package's `servers.schema.json`.
"""

import json
from typing import Final, TypeAlias, cast

import msgspec

from ..config import Settings
from .configuration import SERVERS, SETTINGS
from .wording import SERVER_NAME
from .written import CARRIERS, OF_COMMANDS, OF_URLS, REFUSED, Written

Schema: TypeAlias = dict[str, object]

_EMPTY: Final[Schema] = {"maxItems": 0, "maxProperties": 0, "maxLength": 0}
"""null, or something with nothing in it."""


def text() -> str:
    """Return the file that is shipped."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def schema() -> Schema:
    """Return the schema, of draft 2020-12."""
    _, parts = msgspec.json.schema_components([Written, Settings], ref_template="#/$defs/{name}")
    parts = cast("dict[str, Schema]", parts)
    servers: Schema = {
        "description": "Servers by their names, which come before those of what they offer.",
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": f"^{SERVER_NAME.pattern}$"},
        "additionalProperties": {"$ref": "#/$defs/Server"},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Servers of sessionproxy",
        "description": "What `sessionproxy run --config FILE` serves, in JSON or TOML.",
        "type": "object",
        "properties": {
            **dict.fromkeys(SERVERS, servers),
            SETTINGS: {"$ref": "#/$defs/Settings"},
        },
        "not": {"required": list(SERVERS)},
        "if": {"not": {"anyOf": [{"required": [name]} for name in SERVERS]}},
        "then": _bare(),
        "$defs": {
            **{name: _plain(part) for name, part in sorted(parts.items())},
            "Server": _server(),
            "Written": _written(parts["Written"]),
            "Settings": _settings(parts["Settings"]),
        },
    }


def _bare() -> Schema:
    """Return what a root is that has servers and nothing around them."""
    looks: Schema = {"type": "object", "anyOf": [{"required": ["command"]}, {"required": ["url"]}]}
    return {
        "properties": {SETTINGS: True},
        "additionalProperties": {"if": looks, "then": {"$ref": "#/$defs/Server"}},
    }


def _server() -> Schema:
    """Return what stands under a server's name: one that is disabled may be anything."""
    disabled: Schema = {"properties": {"disabled": {"const": True}}, "required": ["disabled"]}
    not_enabled: Schema = {"properties": {"enabled": {"const": False}}, "required": ["enabled"]}
    return {
        "description": "A command that is started for each session, or a URL.",
        "type": "object",
        "properties": {key: {"type": ["boolean", "null"]} for key in ("disabled", "enabled")},
        "if": {"anyOf": [disabled, not_enabled]},
        "else": {"$ref": "#/$defs/Written"},
    }


def _written(part: Schema) -> Schema:
    """Return what a server is: either kind has fields of its own."""
    plain = _plain(part)
    fields = cast("dict[str, Schema]", plain["properties"])
    for name, instead in REFUSED.items():
        fields[name] = {"description": f"Not to be used: {instead}.", "enum": [None, False]}
    command = _kind("command", "url", OF_URLS, on_pipes=True)
    url = _kind("url", "command", OF_COMMANDS, on_pipes=False)
    return {**plain, "properties": fields, "oneOf": [command, url]}


def _kind(field: str, other: str, others: tuple[str, ...], *, on_pipes: bool) -> Schema:
    spellings = [name for name, carrier in CARRIERS.items() if (carrier is None) is on_pipes]
    return {
        "required": [field],
        "properties": {
            field: {"type": "string"},
            other: {"type": "null"},
            **{key: {"enum": [None, *spellings]} for key in ("transport", "type")},
            **dict.fromkeys(others, _EMPTY),
        },
    }


def _settings(part: Schema) -> Schema:
    """Return the settings, each in both spellings, and no others."""
    plain = _plain(part)
    fields = cast("dict[str, Schema]", plain["properties"])
    hyphens = {name.replace("_", "-"): field for name, field in fields.items()}
    return {**plain, "properties": {**fields, **hyphens}, "additionalProperties": False}


def _plain(part: Schema) -> Schema:
    """Return a schema without what says nothing."""
    told = {key: value for key, value in part.items() if key != "required"}
    fields = cast("dict[str, Schema] | None", part.get("properties"))
    if fields is not None:
        told["properties"] = {
            name: {key: value for key, value in field.items() if (key, value) != ("default", None)}
            for name, field in fields.items()
        }
    return told
