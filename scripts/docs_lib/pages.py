"""The pages that are made from the code, as text: `configuration.md` and `reference.md`.

Neighbours: `scripts/docs write` writes them, `tests/test_docs.py` fails where they are stale. What
the code cannot know of a setting (its unit, and when it bites) stands in `docs/site/settings.toml`.
"""

import enum
import re
import sys
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

import sessionproxy
from sessionproxy.cli import GROUPS, NOT_STDIO, STDIO_DEFAULTS
from sessionproxy.config import LINES, REPEATED, Settings, description_of, flag_of, variable_of

ROOT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = ROOT / "docs"
SETTINGS: Final = DOCS / "site/settings.toml"

MADE: Final = "<!-- Made by `scripts/docs write`; {} -->\n"

MIB: Final = 1024 * 1024

PUBLIC: Final[Mapping[str, tuple[str, ...]]] = {
    "A proxy in Python": (
        "create_proxy",
        "ProxyTarget",
        "Sessions",
        "Transport",
        "Proxy",
    ),
    "Clients of a backend": (
        "ProxyClient",
        "StatefulProxyClient",
        "HandlerContext",
        "RootsHandler",
        "SamplingHandler",
        "ElicitationHandler",
        "LogHandler",
        "ProgressHandler",
        "default_proxy_roots_handler",
        "default_proxy_sampling_handler",
        "default_proxy_elicitation_handler",
        "default_proxy_log_handler",
        "default_proxy_progress_handler",
    ),
    "Components": (
        "ProxyProvider",
        "ClientFactory",
        "ProxyTool",
        "ProxyResource",
        "ProxyTemplate",
        "ProxyPrompt",
        "ComponentIsMirrored",
    ),
    "Configurations of several servers": (
        "read_configuration",
        "Configuration",
        "Server",
        "Rules",
        "ToolChange",
    ),
    "Hooks around requests": (
        "RequestHook",
        "Request",
        "Result",
        "CallNext",
        "RequestFailed",
    ),
    "An ASGI application": (
        "http_app",
        "ProxyApp",
    ),
    "Settings, for wrappers of your own": (
        "ProxySettings",
        "AppSettings",
        "FrontSettings",
    ),
    "Observers of messages": (
        "Hook",
        "Forwarded",
        "Exchange",
        "current_exchange",
        "current_request",
    ),
    "Errors": (
        "ConfigError",
        "ProxyError",
    ),
}
"""Every public name, and the heading below which `reference.md` has it."""

MADE_BY_US: Final = (
    "Proxy",
    "ProxyApp",
    "Request",
    "Exchange",
    "ProxyError",
    "ComponentIsMirrored",
)
"""Classes that users do not make themselves: how it is done is not shown."""

OF_CLIENTS: Final = (
    "connection",
    "family",
    "hears_progress",
    "in_passing",
    "is_last",
    "lasts",
    "listen",
    "planned",
)

INTERNAL: Final[Mapping[str, tuple[str, ...]]] = {
    "Proxy": ("mounted", "plan", "planned", "hears_progress"),
    "ProxyApp": ("facts", "reread", "running", "tally", "watchdog"),
    "ProxyClient": OF_CLIENTS,
    "StatefulProxyClient": OF_CLIENTS,
    "ProxyError": ("fresh", "of_caller", "of_server"),
    "Exchange": ("began_at", "settle", "share", "watchers"),
    "RequestFailed": ("read",),
    "Rules": ("is_empty",),
}
"""What other modules of ours use of a public class, and nobody else should."""


class Prose(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `settings.toml` says of one setting."""

    unit: str
    bites: str


def prose() -> dict[str, Prose]:
    """Raises: msgspec.ValidationError: a section lacks something, or has something unknown."""
    return msgspec.convert(tomllib.loads(SETTINGS.read_text()), dict[str, Prose])


# -- configuration.md ------------------------------------------------------------------------------


def configuration() -> str:
    """Return the page with every setting: what it does, when it bites, unit, default."""
    lines = [
        MADE.format("the prose is in docs/site/settings.toml."),
        "# Configuration",
        "",
        "Every setting is an option of `sessionproxy run`, `sessionproxy doctor` and, but for",
        "those that say otherwise, `sessionproxy stdio`; an environment variable; and an argument",
        "of `http_app` and, but for `mode`, `url` and `config`, of `create_proxy`, under the name",
        "in the headings: there `sessions=` says the mode, and a URL or configuration is the",
        "target. An option wins over a variable. In a configuration file the part",
        "`[sessionproxy]` has them, see [A gateway for several servers](how-to/gateway.md).",
        "",
        'What may be given several times is a list in Python and in files: `env=["NAME=VALUE"]`.',
        'In Python `env` and `header` may be mappings, too: `env={"NAME": "VALUE"}`.',
        "",
        "A value that is out of bounds, or settings that do not go together, end the program with",
        "status 2 and one line that names the setting, before anything is started. Variables that",
        f"begin with `{variable_of('')}` and name no setting are reported and ignored.",
        "",
        "Durations are seconds, sizes bytes.",
        "",
    ]
    known = prose()
    for field in msgspec.structs.fields(Settings):
        if field.name in GROUPS:
            lines += [f"## {GROUPS[field.name]}", ""]
        lines += _section(field, known.get(field.name, Prose("", "")))
    return "\n".join(lines).rstrip() + "\n"


def _section(field: msgspec.structs.FieldInfo, known: Prose) -> Iterator[str]:
    name = field.name
    yield f"### {name}"
    yield ""
    yield description_of(name)
    yield ""
    if known.bites:
        yield f"**When it bites:** {known.bites.strip()}"
        yield ""
    yield f"- Unit: {known.unit}"
    yield f"- Default: {_default(field.default)}{_stdio_default(name)}"
    if bounds := _bounds(field.type):
        yield f"- Bounds: {bounds}"
    yield f"- Given as: {_given(field)}"
    yield ""


def _default(value: object) -> str:
    match value:
        case None:
            return "not set"
        case ():
            return "none"
        case tuple():
            return ", ".join(f"`{one}`" for one in typing.cast("tuple[str, ...]", value))
        case bool():
            return "on" if value else "off"
        case enum.Enum():
            return f"`{value.value}`"
        case int() if value >= MIB and value % MIB == 0:
            return f"`{value}` ({value // MIB} MiB)"
        case float():
            return f"`{value:g}`"
        case _:
            return f"`{value}`"


def _stdio_default(name: str) -> str:
    if name not in STDIO_DEFAULTS:
        return ""
    return f"; of `sessionproxy stdio`: {_default(STDIO_DEFAULTS[name])}"


def _bounds(annotation: object) -> str:
    for meta in getattr(annotation, "__metadata__", ()):
        said = {"at least": meta.ge, "above": meta.gt, "at most": meta.le, "below": meta.lt}
        return ", ".join(f"{word} {bound:g}" for word, bound in said.items() if bound is not None)
    return ""


def _given(field: msgspec.structs.FieldInfo) -> str:
    name, flag = field.name, flag_of(field.name)
    if name == "expose_stderr":
        flag = f"{flag}` or `--no-{flag.removeprefix('--')}"
    more, apart = "", ""
    if name in REPEATED:
        more = ", again for each further value"
        apart = ", one on each line" if name in LINES else ", with spaces between the values"
    return (
        f"`{flag}`{more}; `{variable_of(name)}` in the environment{apart}"
        f"{'; not an option of `sessionproxy stdio`' if name in NOT_STDIO else ''}"
    )


# -- reference.md ----------------------------------------------------------------------------------


def reference() -> str:
    """Return the page whose text mkdocstrings makes from the docstrings of the public names."""
    lines = [
        MADE.format("the names are in scripts/docs_lib/pages.py."),
        "# Reference",
        "",
        "Every name that `sessionproxy` exports, from its docstrings. The settings that several of",
        "them take have [a page of their own](configuration.md).",
        "",
    ]
    for heading, names in PUBLIC.items():
        there = [name for name in names if name in sessionproxy.__all__]
        if there:
            lines += [f"## {heading}", ""]
        for name in there:
            lines += [f"::: sessionproxy.{name}", *_options(name), ""]
    return "\n".join(lines).rstrip() + "\n"


def _options(name: str) -> Iterator[str]:
    """Yield what mkdocstrings is told of one name."""
    made_by_us = name in MADE_BY_US
    internal = INTERNAL.get(name, ())
    if made_by_us or internal:
        yield "    options:"
    if made_by_us:
        yield "      merge_init_into_class: false"
    if internal:
        yield f'      filters: ["!^_", "!^({"|".join(internal)})$"]'


# -- writing them ----------------------------------------------------------------------------------

PAGES: Final = {"configuration.md": configuration, "reference.md": reference}


def write() -> None:
    for name, made in PAGES.items():
        (DOCS / name).write_text(made())
    missing = Settings.__struct_fields__ - prose().keys()
    if missing:
        where = SETTINGS.relative_to(ROOT)
        sys.exit(f"docs: {where} says nothing of: {', '.join(sorted(missing))}")


def anchors(page: str) -> list[str]:
    """Return the names below the third-level headings of a page."""
    return re.findall(r"^### (\S+)$", page, flags=re.MULTILINE)


if __name__ == "__main__":
    write()
