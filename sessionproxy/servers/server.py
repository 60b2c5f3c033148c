"""One server of the configuration, checked: what it is started with or where it is, and its rules.

Neighbours: `written` is its shape in the file; `configuration` has all of them.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias, cast
from urllib.parse import urlsplit

from ..config import ENV_PREFIX, Carrier, ConfigError
from .rules import NO_RULES, Rules, ToolChange, check_names, tool_names
from .variables import filled
from .wording import shown
from .written import (
    CARRIERS,
    FIELDS,
    MIN_TIMEOUT,
    OF_COMMANDS,
    OF_URLS,
    Scalar,
    Spelling,
    Written,
    written_from,
)

_URL: Final = re.compile(r"https?://[^\x00-\x20\x7f\ud800-\udfff]+", re.IGNORECASE)
_SSE: Final = re.compile(r"/sse(?:[/&]|$)")
"""In the path of a URL that speaks HTTP with SSE, the transport of 2024-11-05."""

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?")
"""RFC 9110, sections 5.6.2 and 5.5."""

_TOKEN: Final = re.compile(r"[\x21-\x7e]+")

_Mapping: TypeAlias = Mapping[object, object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """Either its `command` or its `url` is there. `repr` shows nothing that may be secret."""

    name: str
    """Under which it stands in the file."""
    where: str
    """The file and the key it stands under, for messages: `servers.json: mcpServers.weather`."""
    command: tuple[str, ...] = ()
    """With its arguments."""
    url: str | None = None
    """Of a server that runs elsewhere."""
    env: tuple[str, ...] = ()
    """`NAME=VALUE` each."""
    cwd: str | None = None
    """The working directory of its command."""
    carrier: Carrier = Carrier.AUTO
    """How the server at the URL is spoken to."""
    headers: tuple[str, ...] = ()
    """`NAME=VALUE` each."""
    call_timeout: float | None = None
    """Seconds; 0: no limit. None: as for all servers."""
    description: str | None = None
    """What it is, for people and models: in `/readyz`, and in `instructions` of several servers."""
    icon: str | None = None
    """Where its icon is, for people: in `/readyz`."""
    rules: Rules = field(default_factory=Rules)
    """What of it is shown, and under which names."""
    extra: Mapping[str, object] = field(default_factory=dict[str, object])
    """Fields of the file that nobody here knows."""

    def __repr__(self) -> str:
        if self.url is None:
            return f"<Server {self.name}: {' '.join(self.command[:1])}>"
        url = urlsplit(self.url)
        return f"<Server {self.name}: {url.scheme}://{url.netloc.rpartition('@')[2]}>"


def server_from(
    name: str, members: Mapping[str, object], *, where: str, environ: Mapping[str, str]
) -> Server:
    """Return the server of that name.

    Raises: ConfigError: a field is wrong.
    """
    written = written_from(members, where=where)
    spelling = _spelling(written, where)
    common = Server(
        name=name,
        where=where,
        call_timeout=_call_timeout(written, where),
        description=written.description,
        icon=written.icon,
        rules=_rules(written, where),
        extra={name: value for name, value in members.items() if name not in FIELDS},
    )
    if written.command is not None:
        return _of_command(common, written, written.command, spelling, environ)
    return _of_url(common, written, written.url or "", spelling, environ)


def _spelling(written: Written, where: str) -> Spelling | None:
    """Return how the file says that the server is spoken to."""
    if (written.command is None) == (written.url is None):
        raise ConfigError(f"{where}: expected a command or a url, and not both")
    first, second = written.transport, written.type
    if first is not None and second is not None and CARRIERS[first] is not CARRIERS[second]:
        raise ConfigError(f"{where}.type: transport says otherwise; give one of them")
    return first or second


def _of_command(
    common: Server,
    written: Written,
    command: str,
    spelling: Spelling | None,
    environ: Mapping[str, str],
) -> Server:
    where = common.where
    _check_absent(written, OF_URLS, where, "is for a url, and there is a command")
    if spelling is not None and CARRIERS[spelling] is not None:
        key = "transport" if written.transport else "type"
        raise ConfigError(f"{where}.{key}: expected stdio; a command speaks nothing else")
    args = enumerate(written.args or ())
    return replace(
        common,
        command=(
            _name(command, environ, f"{where}.command"),
            *(_text(word, environ, f"{where}.args[{index}]") for index, word in args),
        ),
        env=_env(written.env or {}, environ, f"{where}.env"),
        cwd=None if written.cwd is None else _name(written.cwd, environ, f"{where}.cwd"),
    )


def _of_url(
    common: Server,
    written: Written,
    text: str,
    spelling: Spelling | None,
    environ: Mapping[str, str],
) -> Server:
    where = common.where
    _check_absent(written, OF_COMMANDS, where, "is for a command, and there is a url")
    url = _url(text, environ, f"{where}.url")
    carrier = carrier_of(url) if spelling is None else CARRIERS[spelling]
    if carrier is None:
        key = "transport" if written.transport else "type"
        raise ConfigError(f"{where}.{key}: expected http or sse; stdio is for a command")
    return replace(
        common,
        url=url,
        carrier=carrier,
        headers=_headers(written, environ, where),
    )


def _check_absent(written: Written, names: tuple[str, ...], where: str, why: str) -> None:
    """Empty ones are let pass: some programs write all fields."""
    for name in names:
        if getattr(written, name):
            raise ConfigError(f"{where}.{name}: {why}")


def _call_timeout(written: Written, where: str) -> float | None:
    """Return seconds."""
    for name in ("timeout", "call_timeout"):
        if not math.isfinite(getattr(written, name) or 0):
            raise ConfigError(f"{where}.{name}: expected a number; 0 for no limit")
    if written.timeout is None:
        return written.call_timeout
    if written.call_timeout is not None:
        raise ConfigError(f"{where}.call_timeout: there is a timeout too; give one of them")
    if 0 < written.timeout < MIN_TIMEOUT:
        hint = "expected milliseconds, 1000 or more, or 0 for no limit; call_timeout takes seconds"
        raise ConfigError(f"{where}.timeout: {hint}")
    return written.timeout / 1000


def _text(text: str, environ: Mapping[str, str], where: str) -> str:
    """Return a word that a process can be given."""
    word = filled(text, environ, where=where)
    if "\0" in word:
        raise ConfigError(f"{where}: expected text without NUL")
    return word


def _name(text: str, environ: Mapping[str, str], where: str) -> str:
    """Return the name of a program or a directory."""
    name = _text(text, environ, where)
    if not name:
        raise ConfigError(f"{where}: expected a string that is not empty")
    return name


def _env(env: Mapping[str, Scalar], environ: Mapping[str, str], where: str) -> tuple[str, ...]:
    pairs: list[str] = []
    for name, value in env.items():
        key = f"{where}.{shown(name)}"
        if not name or "=" in name or "\0" in name:
            raise ConfigError(f"{key}: expected the name of a variable")
        if name.startswith(ENV_PREFIX):
            raise ConfigError(f"{key}: the proxy's own variables are not passed on")
        pairs.append(f"{name}={_text(_written_out(value), environ, key)}")
    return tuple(pairs)


def _written_out(value: Scalar) -> str:
    """Return a value of a variable as JSON writes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _url(text: str, environ: Mapping[str, str], where: str) -> str:
    url = filled(text, environ, where=where)
    if not _URL.fullmatch(url) or not _has_host(url):
        raise ConfigError(f"{where}: expected http://... or https://...")
    return url


def _has_host(url: str) -> bool:
    """Return whether it names a host, and a port that there can be where it names one."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # no port, or no address in brackets
        return False


def carrier_of(url: str) -> Carrier:
    """Return what a server speaks by its path (PARITY 4). It may be no URL at all."""
    _, slash, path = re.split(r"[?#]", url)[0].partition("://")[2].partition("/")
    return Carrier.SSE if _SSE.search(slash + path) else Carrier.AUTO


def _headers(written: Written, environ: Mapping[str, str], where: str) -> tuple[str, ...]:
    """Return each as `NAME=VALUE`."""
    headers: dict[str, str] = {}
    for name, text in (written.headers or {}).items():
        key = f"{where}.headers.{shown(name)}"
        if not _HEADER_NAME.fullmatch(name):
            raise ConfigError(f"{key}: expected the name of a header")
        if name.lower() in headers:
            raise ConfigError(f"{key}: stands there twice")
        value = filled(text, environ, where=key).strip()
        if not _HEADER_VALUE.fullmatch(value):
            raise ConfigError(f"{key}: expected a value of visible ASCII characters")
        headers[name.lower()] = f"{name}={value}"
    if written.auth is not None:
        if "authorization" in headers:
            raise ConfigError(f"{where}.auth: headers has an Authorization; give one of them")
        token = _token(written.auth, environ, f"{where}.auth")
        headers["authorization"] = f"Authorization=Bearer {token}"
    return tuple(headers.values())


def _token(text: str, environ: Mapping[str, str], where: str) -> str:
    token = filled(text, environ, where=where).removeprefix("Bearer ")
    if token == "oauth":
        instead = "get one beforehand, or set sessionproxy.forward_authorization"
        raise ConfigError(f"{where}: expected a bearer token; OAuth needs a person: {instead}")
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"{where}: expected a bearer token of visible ASCII characters")
    return token


def _rules(written: Written, where: str) -> Rules:
    allowed, changes = written.allow_tools, written.tools
    if isinstance(changes, tuple):
        if allowed:
            raise ConfigError(f"{where}.allow_tools: tools is a list too; give one of them")
        allowed, changes = changes, None
    prompts = written.rename_prompts or {}
    check_names((f"{where}.rename_prompts.{shown(name)}", name, prompts[name]) for name in prompts)
    return Rules(
        allow_tools=allowed or (),
        deny_tools=written.deny_tools or (),
        allow_prompts=written.allow_prompts or (),
        deny_prompts=written.deny_prompts or (),
        allow_resources=written.allow_resources or (),
        deny_resources=written.deny_resources or (),
        rename_tools=tool_names(written.rename_tools or {}, changes or {}, where=where),
        rename_prompts=prompts,
        tools=changes or {},
        include_tags=written.include_tags or (),
        exclude_tags=written.exclude_tags or (),
    )


def rules_from(given: object, *, where: str) -> Rules:
    """Return the rules that code gives: `Rules`, or a mapping of the fields that they have in a
    file. Checked as in a file, whichever it is.

    Raises: ConfigError: it is neither, or a field is wrong.
    """
    if isinstance(given, Rules):
        members = _members_of(given)
    elif isinstance(given, Mapping):
        members = {str(name): _plain(rule) for name, rule in cast(_Mapping, given).items()}
    else:
        raise ConfigError(f'{where}: expected Rules, or a mapping such as {{"deny_tools": ["x"]}}')
    for name in members:
        if name not in Rules.__struct_fields__:
            allowed = ", ".join(Rules.__struct_fields__)
            raise ConfigError(f"{where}.{shown(name)}: no such rule; expected some of {allowed}")
    return _rules(written_from(members, where=where), where)


def _members_of(rules: Rules) -> dict[str, object]:
    """Return the fields that say something, as a file has them: there a tool's new name stands in
    one place."""
    found: dict[str, object] = {}
    for name in Rules.__struct_fields__:
        rule: object = getattr(rules, name)
        if rule != getattr(NO_RULES, name):
            found[name] = _plain(rule)
    renames = found.get("rename_tools")
    if isinstance(renames, dict) and isinstance(found.get("tools"), dict):
        changes = cast("Mapping[str, object]", rules.tools)
        found["rename_tools"] = {
            old: new
            for old, new in cast("dict[str, object]", renames).items()
            if new != getattr(changes.get(old), "name", None)
        }
    return found


def _plain(rule: object) -> object:
    """Return mappings and changes of tools as objects of JSON."""
    if isinstance(rule, ToolChange):
        return {name: getattr(rule, name) for name in ToolChange.__struct_fields__}
    if isinstance(rule, Mapping):
        return {name: _plain(each) for name, each in cast(_Mapping, rule).items()}
    return rule
