"""One server as the file has it: names, kinds and what each field does.

From this the JSON Schema for editors is made. Neighbours: `server` makes of it what the proxy goes
by.
"""

import difflib
import logging
import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, TypeAlias, cast

import msgspec
from msgspec import Meta

from ..config import Carrier, ConfigError
from .rules import ToolChange
from .wording import NEW_NAME, expected, shown

logger: Final = logging.getLogger(__name__)

Spelling: TypeAlias = Literal[
    "stdio", "local", "http", "streamable-http", "streamable_http", "streamableHttp", "sse"
]
CARRIERS: Final[Mapping[Spelling, Carrier | None]] = {
    "stdio": None,
    "local": None,
    "http": Carrier.HTTP,
    "streamable-http": Carrier.HTTP,
    "streamable_http": Carrier.HTTP,
    "streamableHttp": Carrier.HTTP,
    "sse": Carrier.SSE,
}
"""What `transport` or `type` may be. None: a command, on its pipes."""

OF_COMMANDS: Final = ("args", "env", "cwd")
OF_URLS: Final = ("headers", "auth")
"""Fields that are about a server started here, and about one elsewhere."""

REFUSED: Final[Mapping[str, str]] = {
    "keep_alive": "a backend ends with its session; leave it out (sessionproxy.idle says how long "
    "it may have nothing to do)",
    "sse_read_timeout": "is not supported; give call_timeout, in seconds",
    "envFile": "is not supported; put its variables into env",
}
"""Fields that would have no effect here, and what to do instead. null and false are let pass."""

MIN_TIMEOUT: Final = 1000
"""Milliseconds. Below it somebody meant seconds, as some clients do."""

Text: TypeAlias = Annotated[str, Meta(min_length=1)]
Texts: TypeAlias = Annotated[tuple[Text, ...], Meta(min_length=1)]
"""An empty list to choose from would mean nothing to some and everything to others."""

NewName: TypeAlias = Annotated[str, Meta(extra_json_schema={"pattern": f"^{NEW_NAME.pattern}$"})]

Scalar: TypeAlias = str | int | float | bool


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """A command that is started for each session, or a URL. Other fields are let pass."""

    # What it is
    command: Annotated[
        Text | None,
        Meta(description="Program to start a backend with, for a server over stdio."),
    ] = None
    args: Annotated[
        tuple[str, ...] | None, Meta(description="Arguments of the command; ${VAR} is replaced.")
    ] = None
    env: Annotated[
        dict[str, Scalar] | None,
        Meta(description="Variables for the command; ${VAR} is replaced by the proxy's own."),
    ] = None
    cwd: Annotated[
        Text | None,
        Meta(
            description="Working directory of the command; may contain {session.dir}; default: "
            "where the proxy was started."
        ),
    ] = None
    url: Annotated[
        Text | None,
        Meta(
            description="URL of a running server; ${VAR} is replaced.",
            extra_json_schema={"pattern": r"^[hH][tT][tT][pP][sS]?://|\$\{"},
        ),
    ] = None
    headers: Annotated[
        dict[str, str] | None,
        Meta(description="Headers to send to the URL with every request; ${VAR} is replaced."),
    ] = None
    auth: Annotated[
        Text | None,
        Meta(
            description="Bearer token to send to the URL; ${VAR} is replaced.",
            extra_json_schema={"not": {"const": "oauth"}},
        ),
    ] = None
    transport: Annotated[
        Spelling | None,
        Meta(
            description="How it is spoken to. Default: stdio for a command; sse for a URL with a "
            "path segment /sse; else whichever of http and sse is found."
        ),
    ] = None
    type: Annotated[Spelling | None, Meta(description="Another name of transport.")] = None
    timeout: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(
            description="Milliseconds it has to answer a request, at least 1000; 0: no limit. "
            "Default: sessionproxy.call_timeout.",
            extra_json_schema={
                "not": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": MIN_TIMEOUT}
            },
        ),
    ] = None
    call_timeout: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="The same in seconds; give one of them."),
    ] = None
    description: Annotated[
        str | None,
        Meta(
            description="What it is, for people and models: in /readyz, and in the instructions "
            "of several servers."
        ),
    ] = None
    icon: Annotated[
        str | None, Meta(description="Path or URL of its icon, for people: in /readyz.")
    ] = None
    disabled: Annotated[bool | None, Meta(description="true leaves the server out.")] = None
    enabled: Annotated[bool | None, Meta(description="false leaves the server out.")] = None

    # What of it is shown
    allow_tools: Annotated[
        Texts | None, Meta(description="Patterns of the tools to show; default: all.")
    ] = None
    deny_tools: Annotated[
        tuple[Text, ...] | None, Meta(description="Patterns of tools not to show.")
    ] = None
    allow_prompts: Annotated[
        Texts | None, Meta(description="Patterns of the prompts to show; default: all.")
    ] = None
    deny_prompts: Annotated[
        tuple[Text, ...] | None, Meta(description="Patterns of prompts not to show.")
    ] = None
    allow_resources: Annotated[
        Texts | None,
        Meta(description="Patterns of the URIs, or URI templates, to show; default: all."),
    ] = None
    deny_resources: Annotated[
        tuple[Text, ...] | None,
        Meta(description="Patterns of URIs, or URI templates, not to show."),
    ] = None
    rename_tools: Annotated[
        dict[str, NewName] | None,
        Meta(description="New names of tools by their own, before the server's prefix."),
    ] = None
    rename_prompts: Annotated[
        dict[str, NewName] | None,
        Meta(description="New names of prompts by their own, before the server's prefix."),
    ] = None
    tools: Annotated[
        dict[str, ToolChange] | Texts | None,
        Meta(
            description="What to change about tools, by their own names; as a list, another name "
            "of allow_tools."
        ),
    ] = None
    include_tags: Annotated[
        Texts | None, Meta(description="Show only what has one of these tags; default: all.")
    ] = None
    exclude_tags: Annotated[
        tuple[Text, ...] | None, Meta(description="Do not show what has one of these tags.")
    ] = None


_OF_RULES: Final = [
    name
    for name in Written.__struct_fields__
    if name.partition("_")[0] in ("allow", "deny", "rename", "include", "exclude")
]

FIELDS: Final = frozenset({*Written.__struct_fields__, *REFUSED})
"""Those that are known here."""


def written_from(members: Mapping[str, object], *, where: str) -> Written:
    """Return the fields of a server.

    Raises: ConfigError: one is not of its kind.
    """
    for name, instead in REFUSED.items():
        value = members.get(name)
        if value is not None and value is not False:
            raise ConfigError(f"{where}.{name}: {instead}")
    known = {name: members[name] for name in Written.__struct_fields__ if name in members}
    for name in members.keys() - FIELDS:
        _hint_at(name, where)
    try:
        return msgspec.convert(known, Written)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `")
        path = place.removeprefix("key` in `").removeprefix("$.").rstrip("`")
        raise ConfigError(f"{where}.{_told(known, text, path)}") from None


def _hint_at(name: str, where: str) -> None:
    """Warn of a field that is not known, and likely meant to hide something."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    near = difflib.get_close_matches(snake, _OF_RULES, n=1, cutoff=0.85)
    if near:
        text = "%s.%s: not known, and changes nothing; is %s meant?"
        logger.warning(text, where, shown(name), near[0])


def _told(known: Mapping[str, object], text: str, path: str) -> str:
    """Return what is wrong, and where: msgspec leaves out the names of a mapping."""
    field, mapped, rest = path.partition("[...]")
    if mapped:
        members = cast("Mapping[str, object]", known[field])
        culprit = next(name for name, value in members.items() if not _fits({field: {name: value}}))
        path = f"{field}.{shown(culprit)}{rest}"
    if text.startswith("Invalid enum value"):
        return f"{path}: expected one of {', '.join(CARRIERS)}"
    if text.startswith("Object contains unknown field"):
        unknown = shown(text.partition("`")[2].rpartition("`")[0])
        allowed = ", ".join(ToolChange.__struct_fields__)
        return f"{path}.{unknown}: no such change of a tool; expected some of {allowed}"
    return f"{path}: {expected(text)}"


def _fits(members: Mapping[str, object]) -> bool:
    try:
        msgspec.convert(members, Written)
    except msgspec.ValidationError:
        return False
    return True
