"""Parity rows 10, 11, 14 and 15: a file of servers is read as others read it, and what is wrong in
it is named before anything is started."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import sessionproxy
from sessionproxy.config import Carrier, ConfigError, Settings, settings_from
from sessionproxy.servers import (
    Configuration,
    Rules,
    Server,
    ToolChange,
    configuration_from,
    read_configuration,
    schema,
    tags_of,
)
from sessionproxy.servers.written import CARRIERS, FIELDS, REFUSED

ENVIRON: Final = {
    "TOKEN": "s3cret",
    "HOST": "example.com",
    "EMPTY": "",
    "BASE": "http://h/sse",
    "NESTED": "${TOKEN}",
}
WEATHER: Final = {"url": "https://example.com/mcp"}
SHIPPED: Final = Path(sessionproxy.__file__).with_name("servers.schema.json")
SCHEMA: Final = json.loads(SHIPPED.read_text(encoding="utf-8"))
EDITOR: Final = Draft202012Validator(SCHEMA)


def configured(mapping: Mapping[str, object]) -> Configuration:
    return configuration_from(mapping, source="servers.json", environ=ENVIRON)


def server(**members: object) -> Server:
    return configured({"mcpServers": {"weather": members}}).servers[0]


def refusal(mapping: Mapping[str, object]) -> str:
    """Return what a configuration is refused with, which is one line."""
    with pytest.raises(ConfigError) as caught:
        configured(mapping)
    text = str(caught.value)
    assert "\n" not in text
    return text


def complaint(**members: object) -> str:
    """Return what a server is refused with, after its name."""
    text = refusal({"mcpServers": {"weather": members}})
    assert text.startswith("servers.json: mcpServers.weather")
    return text.removeprefix("servers.json: mcpServers.weather").removeprefix(".")


def suits(mapping: object) -> bool:
    """Return whether an editor with the schema finds nothing to say."""
    return EDITOR.is_valid(cast("Any", mapping))  # pyright: ignore[reportUnknownMemberType] # its stubs


def written(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


# Where servers stand


@pytest.mark.parametrize(
    "mapping",
    [
        {"mcpServers": {"weather": WEATHER}},
        {"servers": {"weather": WEATHER}, "inputs": []},
        {"weather": WEATHER},
        {"weather": WEATHER, "$schema": "https://example.com/s.json", "theme": {"dark": True}},
        {"mcpServers": {"weather": WEATHER}, "globalShortcut": "", "other": {"command": 5}},
    ],
)
def test_servers_are_found_wherever_the_clients_write_them(mapping: dict[str, object]) -> None:
    """PARITY 10: Claude Desktop, VS Code, a bare dict; other fields at the root are ignored."""
    (only,) = configured(mapping).servers
    assert (only.name, only.url) == ("weather", "https://example.com/mcp")
    assert suits(mapping)


def test_a_file_of_claude_desktop_works_unchanged(tmp_path: Path) -> None:
    """PARITY 10."""
    text = """{"globalShortcut": "Ctrl+Space", "mcpServers": {
      "filesystem": {"command": "npx", "args": ["-y", "@scope/server-filesystem", "/tmp"]},
      "git": {"command": "uvx", "args": ["mcp-server-git"], "env": {"LOG": "1"}, "disabled": true},
      "memory": {"type": "stdio", "command": "node", "autoApprove": ["read"], "args": []}}}"""
    configuration = read_configuration(written(tmp_path, "claude_desktop_config.json", text))
    assert [one.name for one in configuration.servers] == ["filesystem", "memory"]
    assert configuration.servers[0].command == ("npx", "-y", "@scope/server-filesystem", "/tmp")
    assert configuration.servers[1].extra == {"autoApprove": ["read"]}
    assert configuration.left_out == ("git",)
    assert configuration.settings == {}
    assert suits(json.loads(text))


def test_a_file_of_toml_says_the_same(tmp_path: Path) -> None:
    """Our choice: by its suffix."""
    text = """
      [sessionproxy]
      idle = 60
      allow-host = ["proxy.example.com"]
      [mcpServers.weather]
      url = "https://example.com/mcp"
      [mcpServers.weather.rename_tools]
      forecast = "tomorrow"
      [mcpServers.shell]
      command = "bash-mcp"
      env = { LEVEL = 3 }
    """
    path = written(tmp_path, "servers.TOML", text)
    configuration = read_configuration(path)
    assert configuration.source == str(path)
    assert configuration.settings == {"idle": 60, "allow_host": ["proxy.example.com"]}
    assert [one.name for one in configuration.servers] == ["weather", "shell"]
    assert configuration.servers[0].rules.rename_tools == {"forecast": "tomorrow"}
    assert configuration.servers[1].env == ("LEVEL=3",)
    assert settings_from(configuration.settings).idle == 60


def test_a_file_may_have_any_character(tmp_path: Path) -> None:
    """As JSON writes those that take two."""
    text = '{"mcpServers": {"weather": {"url": "http://h", "description": "\\ud83d\\ude00"}}}'
    (only,) = read_configuration(written(tmp_path, "servers.json", text)).servers
    assert only.description == "\U0001f600"


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Editors on Windows write one."""
    text = "\ufeff" + json.dumps({"mcpServers": {"weather": WEATHER}})
    assert read_configuration(written(tmp_path, "servers.json", text)).servers[0].name == "weather"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("s.json", '{\n  "mcpServers": {,\n}', "line 2, column 18: "),
        ("s.json", '{"a": 1, "b": {"c": [{"d": 1, "d": 2}]}}', "b.c[0].d: stands there twice"),
        ("s.json", '{"x": 1, "x": 1}', "x: stands there twice"),
        ("s.json", '{"x": NaN}', "NaN is not JSON"),
        ("s.json", '{"x": ["a", "\\ud83d"]}', "x[1]: expected text; "),
        ("s.json", '{"x": {"a\\ude00": 1}}', "x.a...: expected text; "),
        ("s.json", "[1]", 'expected an object, such as {"mcpServers": ...}'),
        ("s.json", "[" * 100_000, "nested too deeply"),
        ("s.json", "", "line 1, column 1: "),
        ("s.toml", "[a]\nb = \n", "line 2, column 5: "),
        ("s.toml", "a = 1\na = 2\n", "line 2, column 6: "),
        ("s.toml", "a = ", "Invalid value (at end of document)"),
    ],
)
def test_a_file_that_is_no_json_or_toml_is_told_the_place(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    """A name that stands twice is a mistake too: other readers keep the last one, silently."""
    path = written(tmp_path, name, text)
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {told}")) as caught:
        read_configuration(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """DESIGN 11."""
    with pytest.raises(ConfigError, match=r"none\.json: No such file or directory"):
        read_configuration(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(ConfigError, match=r"latin\.json: expected text in UTF-8"):
        read_configuration(tmp_path / "latin.json")


@pytest.mark.parametrize(
    ("mapping", "told"),
    [
        ({}, "servers.json: expected at least one server in mcpServers"),
        ({"mcpServers": {}}, "servers.json: expected at least one server in mcpServers"),
        ({"mcpServers": {}, "weather": WEATHER}, "servers.json: expected at least one server"),
        ({"mcpServers": [WEATHER]}, "servers.json: mcpServers: expected an object"),
        ({"mcpServers": None}, "servers.json: mcpServers: expected an object"),
        ({"servers": {"a": "x"}}, "servers.json: servers.a: expected an object"),
        ({"mcpServers": {}, "servers": {}}, "servers.json: mcpServers and servers: expected one"),
        (
            {"mcpServers": {"a": {"url": "http://h", "disabled": True}}},
            "servers.json: expected at least one server in mcpServers; all there are are disabled",
        ),
        ({"a": {"command": 5}}, "servers.json: a.command: expected a string"),
    ],
)
def test_a_configuration_without_servers_is_refused(mapping: dict[str, object], told: str) -> None:
    """DESIGN 11: there would be nothing to serve."""
    assert refusal(mapping).startswith(told)


@pytest.mark.parametrize("name", ["a", "a.b", "A-1_b", ".well", "...", "x" * 64])
def test_names_of_servers_are_letters_digits_and_three_signs(name: str) -> None:
    """Our choice: they stand in tool names, URIs and paths."""
    mapping = {"mcpServers": {name: WEATHER}}
    assert configured(mapping).servers[0].name == name
    assert suits(mapping)


@pytest.mark.parametrize(
    "name", ["", " ", "my server", "a/b", ".", "..", "x" * 65, "x" * 999, "é", "a\n", "a:"]
)
def test_other_names_of_servers_are_refused(name: str) -> None:
    """`.` and `..` would lead to another path at /servers/NAME/mcp."""
    for mapping in ({"mcpServers": {name: WEATHER}}, {name: WEATHER}):
        told = refusal(mapping)
        assert "expected a name of 1 to 64 letters, digits, hyphens, underscores and dots" in told
        assert len(told) < 300
    if not name.endswith("\n"):  # where `$` may match is not the same in all languages
        assert not suits({"mcpServers": {name: WEATHER}})


@pytest.mark.parametrize("field", [{"disabled": True}, {"enabled": False}])
def test_a_server_that_is_disabled_is_left_out_whatever_it_says(field: dict[str, object]) -> None:
    """Cline and Claude; somebody may have disabled it because it does not work."""
    broken: dict[str, object] = {"command": "${NOWHERE}", "envFile": ".env", **field}
    mapping = {"mcpServers": {"weather": WEATHER, "broken": broken}}
    configuration = configured(mapping)
    assert [one.name for one in configuration.servers] == ["weather"]
    assert configuration.left_out == ("broken",)
    assert suits(mapping)


def test_a_server_that_is_not_disabled_is_there() -> None:
    """Cline writes both."""
    assert server(**WEATHER, disabled=False, enabled=True).extra == {}
    assert complaint(**WEATHER, disabled="no") == "disabled: expected true or false"
    assert complaint(**WEATHER, enabled=0) == "enabled: expected true or false"


# The proxy's own part


def test_the_proxys_part_has_settings_in_either_spelling() -> None:
    """Issue 5: every option. Bounds are checked where the command line's are."""
    part = {"max-sessions": 5, "call_timeout": 2.5, "key-meta": ["threadId"], "insecure": True}
    mapping = {"mcpServers": {"weather": WEATHER}, "sessionproxy": part}
    settings = configured(mapping).settings
    expected = {"max_sessions": 5, "call_timeout": 2.5, "key_meta": ["threadId"], "insecure": True}
    assert settings == expected
    assert settings_from(settings).key_meta == ("threadId",)
    assert suits(mapping)


def test_every_setting_can_stand_in_the_proxys_part() -> None:
    """Issue 5: a `[sessionproxy]` part for every option."""
    defaults = cast("dict[str, object]", json.loads(msgspec.json.encode(Settings())))
    for part in (defaults, {name.replace("_", "-"): value for name, value in defaults.items()}):
        mapping = {"weather": WEATHER, "sessionproxy": part}
        assert settings_from(configured(mapping).settings) == Settings()
        assert suits(mapping)


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"max-session": 5}, ".max-session: no such setting; expected max_sessions?"),
        ({"zzz": 5}, ".zzz: no such setting"),
        ({"max-sessions": 5, "max_sessions": 5}, ".max_sessions: stands there twice"),
        ([], ": expected an object with settings"),
        (None, ": expected an object with settings"),
    ],
)
def test_what_is_no_setting_is_named(part: object, told: str) -> None:
    """DESIGN 11: a typo must not pass for the default."""
    mapping = {"mcpServers": {"weather": WEATHER}, "sessionproxy": part}
    assert refusal(mapping) == f"servers.json: sessionproxy{told}"


# One server


def test_a_command_has_arguments_environment_and_directory() -> None:
    """PARITY 15: `env`, `cwd`, and what describes it."""
    env = {"LEVEL": 3, "RATE": 0.5, "QUIET": True, "NAME": "x=y"}
    one = server(command="npx", args=["-y", "x"], env=env, cwd="{session.dir}", icon="i.png")
    assert one.command == ("npx", "-y", "x")
    assert one.env == ("LEVEL=3", "RATE=0.5", "QUIET=true", "NAME=x=y")
    assert (one.url, one.cwd, one.icon) == (None, "{session.dir}", "i.png")
    assert one.where == "servers.json: mcpServers.weather"
    assert server(command="x", description="Tells the weather").description == "Tells the weather"


def test_a_url_has_headers_and_a_token() -> None:
    """PARITY 15: `headers`, `auth`."""
    one = server(**WEATHER, headers={"X-Key": " k=1 "}, auth="t0ken")
    assert one.headers == ("X-Key=k=1", "Authorization=Bearer t0ken")
    assert (one.command, one.env, one.cwd) == ((), (), None)
    assert server(url="HTTPS://example.com/sse").carrier is Carrier.SSE
    assert server(**WEATHER, auth="Bearer t0ken").headers == ("Authorization=Bearer t0ken",)


@pytest.mark.parametrize(
    ("path", "carrier"),
    [
        ("/mcp", Carrier.AUTO),
        ("", Carrier.AUTO),
        ("/sse", Carrier.SSE),
        ("/sse/", Carrier.SSE),
        ("/api/sse/x", Carrier.SSE),
        ("/sse?key=1", Carrier.SSE),
        ("/sse&key=1", Carrier.SSE),
        ("/sser", Carrier.AUTO),
        ("/x-sse", Carrier.AUTO),
        ("/mcp?from=/sse", Carrier.AUTO),
    ],
)
def test_a_path_segment_sse_tells_the_older_transport(path: str, carrier: Carrier) -> None:
    """PARITY 4."""
    assert server(url=f"https://example.com{path}").carrier is carrier
    assert server(url=f"https://example.com{path}", type=None).carrier is carrier


@pytest.mark.parametrize("field", ["transport", "type"])
@pytest.mark.parametrize("spelling", CARRIERS)
def test_a_transport_that_is_named_is_what_is_spoken(field: str, spelling: str) -> None:
    """PARITY 10: as clients spell it. Only a command is on pipes."""
    carrier = next(carrier for name, carrier in CARRIERS.items() if name == spelling)
    of_url = {"url": "https://example.com/sse", field: spelling}
    of_command = {"command": "x", field: spelling}
    if carrier is None:
        assert server(**of_command).command == ("x",)
        told = "expected http or sse; stdio is for a command"
        assert complaint(**of_url) == f"{field}: {told}"
    else:
        assert server(**of_url).carrier is carrier
        told = "expected stdio; a command speaks nothing else"
        assert complaint(**of_command) == f"{field}: {told}"
    assert suits({"a": of_url}) is (carrier is not None)
    assert suits({"a": of_command}) is (carrier is None)


def test_two_names_of_the_transport_have_to_agree() -> None:
    """DESIGN 11."""
    assert server(**WEATHER, type="http", transport="streamable-http").carrier is Carrier.HTTP
    told = "type: transport says otherwise; give one of them"
    assert complaint(**WEATHER, type="sse", transport="http") == told


def test_a_timeout_is_milliseconds() -> None:
    """PARITY 15: as FastMCP and Claude Code have it; 0 is no limit, as in `config`."""
    assert server(**WEATHER, timeout=30000).call_timeout == 30
    assert server(**WEATHER, timeout=1000).call_timeout == 1
    assert server(**WEATHER, timeout=0).call_timeout == 0
    assert server(**WEATHER, call_timeout=0.5).call_timeout == 0.5
    assert server(**WEATHER).call_timeout is None


@pytest.mark.parametrize("timeout", [1, 60, 999.9])
def test_a_timeout_that_was_meant_in_seconds_is_refused(timeout: float) -> None:
    """Cline has seconds there: 60 must not become 60 ms."""
    told = complaint(**WEATHER, timeout=timeout)
    assert told.startswith("timeout: expected milliseconds, 1000 or more")
    assert "call_timeout takes seconds" in told
    assert not suits({"weather": {**WEATHER, "timeout": timeout}})


@pytest.mark.parametrize("name", ["timeout", "call_timeout"])
def test_a_limit_without_a_bound_is_no_number(name: str) -> None:
    """`1e999` is JSON."""
    for value in (math.inf, math.nan):
        assert complaint(**WEATHER, **{name: value}).startswith(f"{name}: expected a number")


@pytest.mark.parametrize("field", REFUSED)
def test_what_would_have_no_effect_is_refused(field: str) -> None:
    """PARITY 15: each field has an observable effect or is rejected."""
    for value in (True, 0, 5, ".env"):
        assert complaint(command="x", **{field: value}) == f"{field}: {REFUSED[field]}"
        assert not suits({"a": {"command": "x", field: value}})
    for nothing in (None, False):
        assert server(command="x", **{field: nothing}).extra == {}
        assert suits({"a": {"command": "x", field: nothing}})


def test_what_is_about_the_other_kind_of_server_is_refused() -> None:
    """PARITY 15. Empty ones are let pass: some programs write all fields."""
    given: dict[str, object] = {"args": ["x"], "env": {"A": "x"}, "cwd": "/"}
    for field, value in given.items():
        assert complaint(**WEATHER, **{field: value}).startswith(f"{field}: is for a command")
        assert not suits({"a": {**WEATHER, field: value}})
    given = {"headers": {"a": "x"}, "auth": "x"}
    for field, value in given.items():
        assert complaint(command="x", **{field: value}).startswith(f"{field}: is for a url")
        assert not suits({"a": {"command": "x", field: value}})
    empty: dict[str, object] = {**WEATHER, "args": [], "env": {}, "cwd": None, "command": None}
    assert server(**empty).url == WEATHER["url"]
    assert suits({"a": empty})


def test_fields_that_nobody_here_knows_are_kept() -> None:
    """PARITY 15: unknown fields preserved."""
    unknown = {"autoApprove": ["x"], "metadata": {"a": [1, None]}, "x": None}
    assert server(**WEATHER, **unknown).extra == unknown
    assert suits({"weather": {**WEATHER, **unknown}})
    known = dict.fromkeys(FIELDS - {"url"})
    assert server(**WEATHER, **known).extra == {}
    assert suits({"weather": {**WEATHER, **known}})


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({}, ": expected a command or a url, and not both"),
        ({"command": "x", **WEATHER}, ": expected a command or a url, and not both"),
        ({"command": ""}, "command: expected a string that is not empty"),
        ({"command": ["npx", "-y"]}, "command: expected a string"),
        ({"command": "${EMPTY}"}, "command: expected a string that is not empty"),
        ({"command": "x", "cwd": "${EMPTY}"}, "cwd: expected a string that is not empty"),
        ({"command": "x", "args": "-y x"}, "args: expected a list"),
        ({"command": "x", "args": ["a", 5]}, "args[1]: expected a string"),
        ({"command": "x", "args": ["a", "b\0"]}, "args[1]: expected text without NUL"),
        ({"command": "x", "env": []}, "env: expected an object"),
        ({"command": "x", "env": {5: "x"}}, "env: expected a string"),
        ({"command": "x", "env": {"A": "1", "B": []}}, "env.B: expected a string or a number or"),
        ({"command": "x", "env": {"": "1"}}, "env....: expected the name of a variable"),
        ({"command": "x", "env": {"A=B": "1"}}, "env.A...: expected the name of a variable"),
        ({"command": "x", "env": {"SESSIONPROXY_X": "1"}}, "env.SESSIONPROXY_X: the proxy's own"),
        ({"command": "x", "env": {"A\nB": []}}, "env.A...: expected a string"),
        *(
            ({"url": url}, "url: expected http://... or https://...")
            for url in (
                "example.com",
                "ftp://h",
                "http://",
                "http:///x",
                "http://[::/",
                "http://a b",
                "http://a\0",
                "http://a\udc80",
                "http://:80/",
                "http://u:p@/x",
                "http://h:x",
                "http://h:65536",
                "http\u017f://h",
            )
        ),
        ({"url": 5}, "url: expected a string"),
        ({**WEATHER, "headers": {"a": 5}}, "headers.a: expected a string"),
        ({**WEATHER, "headers": {"a b": "x"}}, "headers.a...: expected the name of a header"),
        ({**WEATHER, "headers": {"a": "x\r\nb: y"}}, "headers.a: expected a value of visible"),
        ({**WEATHER, "headers": {"a": "x", "A": "y"}}, "headers.A: stands there twice"),
        ({**WEATHER, "headers": {"authorization": "x"}, "auth": "y"}, "auth: headers has an"),
        ({**WEATHER, "auth": "oauth"}, "auth: expected a bearer token; OAuth needs a person"),
        ({**WEATHER, "auth": {"token": "x"}}, "auth: expected a string"),
        ({**WEATHER, "auth": "a b"}, "auth: expected a bearer token of visible ASCII"),
        ({**WEATHER, "transport": "ws"}, "transport: expected one of stdio, local, http,"),
        ({**WEATHER, "timeout": "5s"}, "timeout: expected a number"),
        ({**WEATHER, "timeout": 10**400}, "timeout: expected a number"),
        ({**WEATHER, "timeout": -1}, "timeout: expected a number of at least 0"),
        ({**WEATHER, "timeout": 1000, "call_timeout": 1}, "call_timeout: there is a timeout too"),
        ({**WEATHER, "description": 5}, "description: expected a string"),
        ({**WEATHER, "icon": {}}, "icon: expected a string"),
        ({**WEATHER, "allow_tools": "x"}, "allow_tools: expected a list"),
        ({**WEATHER, "allow_tools": []}, "allow_tools: expected a list that is not empty"),
        ({**WEATHER, "deny_tools": [""]}, "deny_tools[0]: expected a string that is not empty"),
        ({**WEATHER, "include_tags": []}, "include_tags: expected a list that is not empty"),
        ({**WEATHER, "tools": "x"}, "tools: expected a list or an object"),
        ({**WEATHER, "tools": {"a": 5}}, "tools.a: expected an object"),
        ({**WEATHER, "tools": {"a": {"enabled": 1}}}, "tools.a.enabled: expected true or false"),
        ({**WEATHER, "tools": {"a": {"arguments": {}}}}, "tools.a.arguments: no such change"),
        ({**WEATHER, "tools": {"a": {"name": "b c"}}}, "tools.a.name: expected 1 to 128 letters"),
        ({**WEATHER, "rename_tools": {"a": ""}}, "rename_tools.a: expected 1 to 128 letters"),
        ({**WEATHER, "rename_prompts": {"a": "x\n"}}, "rename_prompts.a: expected 1 to 128"),
        ({**WEATHER, "rename_prompts": {"a": 5}}, "rename_prompts.a: expected a string"),
    ],
)
def test_a_field_that_is_wrong_is_named_with_what_is_allowed(
    members: dict[str, object], told: str
) -> None:
    """DESIGN 11: file, server and key on one line."""
    assert complaint(**members).startswith(told)


# Variables


def test_variables_stand_in_what_is_given_to_a_backend() -> None:
    """As Claude Code and VS Code replace them."""
    of_command = server(
        command="${HOST}/run",
        args=["--token=${env:TOKEN}", "${NONE:-a b}", "$HOST", "${TOKEN:-x}${HOST}", "${NESTED}"],
        env={"KEY": "${TOKEN}"},
        cwd="/srv/${HOST}",
    )
    args = ("--token=s3cret", "a b", "$HOST", "s3cretexample.com", "${TOKEN}")
    assert of_command.command == ("example.com/run", *args)
    assert (of_command.env, of_command.cwd) == (("KEY=s3cret",), "/srv/example.com")
    of_url = server(url="https://${HOST}/sse", headers={"X-Key": "k-${TOKEN}"}, auth="${TOKEN}")
    assert (of_url.url, of_url.carrier) == ("https://example.com/sse", Carrier.SSE)
    assert of_url.headers == ("X-Key=k-s3cret", "Authorization=Bearer s3cret")
    assert server(url="${BASE}").carrier is Carrier.SSE


def test_nothing_else_has_variables() -> None:
    """What is shown, and what is compared with names, is as it stands in the file."""
    one = server(**WEATHER, description="${TOKEN}", deny_tools=["${NOWHERE}"], other="${NOWHERE}")
    assert (one.description, one.rules.deny_tools) == ("${TOKEN}", ("${NOWHERE}",))
    assert one.extra == {"other": "${NOWHERE}"}


@pytest.mark.parametrize(
    ("members", "key"),
    [
        ({"command": "${NONE}"}, "command"),
        ({"command": "x", "args": ["${HOST}", "${env:NONE}"]}, "args[1]"),
        ({"command": "x", "env": {"A": "${NONE}"}}, "env.A"),
        ({"command": "x", "cwd": "${NONE}"}, "cwd"),
        ({"url": "https://${NONE}"}, "url"),
        ({**WEATHER, "headers": {"X-Key": "${NONE}"}}, "headers.X-Key"),
        ({**WEATHER, "auth": "${NONE}"}, "auth"),
    ],
)
def test_a_variable_that_is_missing_is_named(members: dict[str, object], key: str) -> None:
    """An empty credential in its place would fail far away."""
    assert complaint(**members) == f"{key}: ${{NONE}}: there is no such variable"


def test_what_an_editor_would_ask_its_user_is_refused() -> None:
    """VS Code's `${input:...}`: many users are served, and nobody can be asked."""
    told = complaint(command="x", env={"KEY": "${input:api-key}"})
    assert told == "env.KEY: ${input:...} needs an editor; expected a value, or ${VARIABLE}"


def test_the_variables_are_those_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no others are given."""
    monkeypatch.setenv("OUR_HOST", "here")
    mapping = {"a": {"url": "http://${OUR_HOST}"}}
    path = written(tmp_path, "s.json", json.dumps(mapping))
    for configuration in (configuration_from(mapping), read_configuration(path)):
        assert configuration.servers[0].url == "http://here"


# Rules


def test_without_rules_everything_is_shown() -> None:
    """PARITY 14."""
    rules = server(**WEATHER).rules
    assert rules.is_empty
    assert rules.shows_tool("a")
    assert rules.shows_prompt("a")
    assert rules.shows_resource("a://b")


@pytest.mark.parametrize("kind", ["tool", "prompt", "resource"])
def test_patterns_allow_and_deny_names(kind: str) -> None:
    """PARITY 14: what is denied is denied, allowed or not; upper case is another letter."""
    both = {f"allow_{kind}s": ["get_*", "list"], f"deny_{kind}s": ["*_secret"]}
    shows = getattr(server(**WEATHER, **both).rules, f"shows_{kind}")
    names = ["get_a", "list", "lists", "Get_a", "get_secret", "set"]
    assert [name for name in names if shows(name)] == ["get_a", "list"]
    denied = getattr(server(**WEATHER, **{f"deny_{kind}s": ["x?"]}).rules, f"shows_{kind}")
    assert [name for name in ("x", "xy", "xyz") if denied(name)] == ["x", "xyz"]
    others = {"tool", "prompt", "resource"} - {kind}
    for other in others:
        assert getattr(server(**WEATHER, **both).rules, f"shows_{other}")("get_secret")


def test_tags_choose_tools_prompts_and_resources() -> None:
    """PARITY 14: `include_tags`, `exclude_tags`."""
    rules = server(**WEATHER, include_tags=["public", "new"], exclude_tags=["old"]).rules
    shown = {"public": True, "new": True, "old": False, "else": False}
    for tag, is_shown in shown.items():
        assert rules.shows_tool("a", [tag]) is is_shown
        assert rules.shows_prompt("a", {tag}) is is_shown
        assert rules.shows_resource("a://b", [tag]) is is_shown
    assert not rules.shows_tool("a", ["public", "old"])
    assert not rules.shows_tool("a")
    assert server(**WEATHER, exclude_tags=["old"]).rules.shows_tool("a")


def test_tags_stand_in_the_meta_of_fastmcps_servers() -> None:
    """PARITY 14: `_meta.fastmcp.tags`; `_fastmcp` before 3.0."""
    assert tags_of({"fastmcp": {"tags": ["a", "b"]}, "x": 1}) == {"a", "b"}
    assert tags_of({"_fastmcp": {"tags": ["a"]}}) == {"a"}
    for nothing in (None, 5, {}, {"fastmcp": None}, {"fastmcp": {"tags": "ab"}}):
        assert tags_of(nothing) == frozenset()
    assert tags_of({"fastmcp": {"tags": ["a", 5]}}) == {"a"}


def test_tools_are_changed_as_fastmcps_configuration_has_it() -> None:
    """PARITY 14: `tools`; its new names are among the others."""
    changes = {
        "get": {"name": "fetch", "title": "Fetch", "description": "Fetches."},
        "rm": {"enabled": False},
        "ls": {"enabled": True},
    }
    rules = server(**WEATHER, tools=changes, rename_tools={"a": "b"}, exclude_tags=["x"]).rules
    assert rules.tools["get"] == ToolChange(name="fetch", title="Fetch", description="Fetches.")
    assert rules.rename_tools == {"a": "b", "get": "fetch"}
    assert not rules.is_empty
    assert [name for name in changes if rules.shows_tool(name)] == ["get", "ls"]
    assert [name for name in changes if rules.shows_tool(name, ["x"])] == ["ls"]
    denied = server(**WEATHER, tools={"ls": {"enabled": True}}, deny_tools=["ls"]).rules
    assert not denied.shows_tool("ls")


def test_a_list_of_tools_is_what_is_allowed() -> None:
    """As Copilot's files have it."""
    assert server(**WEATHER, tools=["*"]).rules == Rules(allow_tools=("*",))
    told = "allow_tools: tools is a list too; give one of them"
    assert complaint(**WEATHER, tools=["a"], allow_tools=["b"]) == told


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"rename_tools": {"a": "c", "b": "c"}}, "rename_tools.b: a has this name too"),
        ({"rename_prompts": {"a": "c", "b": "c"}}, "rename_prompts.b: a has this name too"),
        (
            {"rename_tools": {"a": "c"}, "tools": {"b": {"name": "c"}}},
            "tools.b.name: a has this name too",
        ),
        (
            {"rename_tools": {"a": "b"}, "tools": {"b": {"title": "B"}}},
            "rename_tools.a: b has this name too",
        ),
        (
            {"rename_tools": {"a": "b"}, "tools": {"a": {"name": "b"}}},
            "tools.a.name: rename_tools has this tool too",
        ),
    ],
)
def test_new_names_that_collide_are_refused(members: dict[str, object], told: str) -> None:
    """One of the two could never be called."""
    assert complaint(**WEATHER, **members).startswith(told)


def test_two_tools_may_change_names() -> None:
    """Neither is in use any more."""
    names = {"a": "b", "b": "a"}
    assert server(**WEATHER, rename_tools=names).rules.rename_tools == names
    tools = {"a": {"name": "b"}, "b": {"name": "a"}}
    assert server(**WEATHER, tools=tools).rules.rename_tools == names


# Secrets


@pytest.mark.parametrize(
    "members",
    [
        {"command": "x", "args": ["--key=s3cret"], "env": {"A": "s3cret"}, "note": "s3cret"},
        {
            "url": "https://u:s3cret@h:1/s3cret?k=s3cret",
            "headers": {"a": "s3cret"},
            "auth": "s3cret",
        },
    ],
)
def test_no_secret_is_shown(members: dict[str, object]) -> None:
    """DESIGN 5.8: a log may show what it likes."""
    one = server(**members)
    assert "s3cret" not in repr(one) + str(one) + f"{one!r}"
    mapping = {"mcpServers": {"a": members}, "sessionproxy": {"header": ["a=s3cret"]}}
    shown = repr(configured(mapping))
    assert "s3cret" not in shown
    assert "header" in shown


@pytest.mark.parametrize(
    "members",
    [
        {"command": "x", "env": {"A": ["s3cret"]}},
        {"command": "x", "env": {"A": "s3cret\0"}},
        {"command": "x", "env": {"A=": "s3cret"}},
        {"command": "x", "env": "s3cret"},
        {"command": "x", "args": ["s3cret\0"]},
        {"command": "x", "headers": {"a": "s3cret"}},
        {"url": "s3cret"},
        {"url": "http://[s3cret"},
        {"url": "https://${env:NONE}/?k=s3cret"},
        {**WEATHER, "headers": {"a": "s3cret\n"}, "auth": "s3cret s3cret"},
        {**WEATHER, "headers": {"a": ["s3cret"]}},
        {**WEATHER, "headers": {"a": "s3cret\x7f"}},
        {**WEATHER, "headers": {"a:": "s3cret"}},
        {"command": "x", "env": {"KEY=s3cret": "1"}},
        {"command": "x", "env": {"KEY=s3cret": None}},
        {**WEATHER, "headers": {"Authorization: Bearer s3cret": ""}},
        {**WEATHER, "headers": {"X-Key:s3cret": None}},
        {**WEATHER, "auth": "s3cret "},
        {**WEATHER, "auth": {"s3cret": "s3cret"}},
        {**WEATHER, "auth": "${TOKEN}\x7f"},
    ],
)
def test_no_secret_is_in_what_is_told(members: dict[str, object]) -> None:
    """What is told goes to a log, or into a bug report."""
    assert "s3cret" not in complaint(**members)


# The schema


def test_the_schema_that_is_shipped_is_up_to_date() -> None:
    """Editors have what the proxy reads. Make it with `scripts/schema`."""
    assert SHIPPED.read_text(encoding="utf-8") == schema.text()


def test_the_schema_is_one() -> None:
    """Draft 2020-12; every field, and every setting, says what it does."""
    Draft202012Validator.check_schema(SCHEMA)
    definitions = cast("dict[str, dict[str, Any]]", SCHEMA["$defs"])
    for name in ("Written", "Settings", "ToolChange"):
        assert all(field["description"] for field in definitions[name]["properties"].values())
    assert definitions["Written"]["properties"].keys() == FIELDS
    assert definitions["Settings"]["properties"]["port"]["maximum"] == 65535


@pytest.mark.parametrize(
    "mapping",
    [
        {"mcpServers": {}},
        {"mcpServers": {"a": {}}},
        {"mcpServers": {"a": "x"}},
        {"mcpServers": {"a": {"command": "x", "url": "http://h"}}},
        {"mcpServers": {"a": {"command": "x", "args": "y"}}},
        {"mcpServers": {"a": {"command": "x", "env": {"A": None}}}},
        {"mcpServers": {"a": {"url": "example.com"}}},
        {"mcpServers": {"a": {"url": "http://h", "auth": "oauth"}}},
        {"mcpServers": {"a": {"url": "http://h", "transport": "ws"}}},
        {"mcpServers": {"a": {"url": "http://h", "rename_tools": {"a": "b c"}}}},
        {"mcpServers": {"a": {"url": "http://h", "tools": {"a": {"arguments": {}}}}}},
        {"mcpServers": {"a": {"url": "http://h", "allow_tools": []}}},
        {"a": {"command": 5}},
        {"mcpServers": {"a": WEATHER}, "servers": {"a": WEATHER}},
        {"mcpServers": {"a": WEATHER}, "sessionproxy": {"max_session": 5}},
    ],
)
def test_an_editor_finds_what_the_proxy_would_refuse(mapping: dict[str, object]) -> None:
    """Issue 5: published for editors."""
    assert refusal(mapping)
    assert not suits(mapping)


@pytest.mark.parametrize(
    "part", [{"port": 70000}, {"idle": -1}, {"idle": "soon"}, {"mode": "x"}, {"env": "A=1"}]
)
def test_an_editor_knows_the_bounds_of_the_settings(part: dict[str, object]) -> None:
    """Issue 5: published for editors."""
    assert not suits({"mcpServers": {"a": WEATHER}, "sessionproxy": part})


SOME: Final = ["a", "b", "http://h/sse", "${TOKEN}", "oauth"]
TEXTS: Final = st.text(max_size=8) | st.sampled_from(SOME)
ANYTHING: Final[st.SearchStrategy[object]] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
LISTS: Final = st.lists(TEXTS, max_size=2)
NAMES: Final = st.dictionaries(TEXTS, TEXTS, max_size=2)
SWITCHES: Final = st.booleans() | st.none()
NUMBERS: Final = st.floats() | st.integers(-1, 2000)
SPELLINGS: Final = st.sampled_from([*CARRIERS, None])
CHANGES: Final = st.fixed_dictionaries(
    {}, optional={"name": TEXTS, "title": TEXTS, "enabled": SWITCHES}
)
OF_COMMANDS: Final[dict[str, st.SearchStrategy[object]]] = {
    "args": LISTS,
    "env": st.dictionaries(TEXTS, TEXTS | st.integers() | st.booleans(), max_size=2),
    "cwd": TEXTS,
    "type": SPELLINGS,
}
OF_URLS: Final[dict[str, st.SearchStrategy[object]]] = {
    "headers": NAMES,
    "auth": TEXTS,
    "transport": SPELLINGS,
}
OF_BOTH: Final[dict[str, st.SearchStrategy[object]]] = {
    "timeout": NUMBERS,
    "call_timeout": NUMBERS,
    "tools": LISTS | st.dictionaries(TEXTS, CHANGES, max_size=2),
    "rename_tools": NAMES,
    "rename_prompts": NAMES,
    **dict.fromkeys(("disabled", "enabled", *REFUSED), SWITCHES),
    **{name: LISTS for name in FIELDS if name.startswith(("allow", "deny", "include", "exclude"))},
}


@st.composite
def entries(draw: st.DrawFn) -> dict[str, object]:
    """Draw what may stand under a server's name: most of it is nearly right."""
    if draw(st.integers(0, 9)) == 0:
        names = st.sampled_from([*sorted(FIELDS), "other"])
        return draw(st.dictionaries(names, ANYTHING, max_size=4))
    is_command = draw(st.booleans())
    field, optional = ("command", OF_COMMANDS) if is_command else ("url", OF_URLS)
    members: dict[str, object] = {field: draw(TEXTS | st.just("http://h"))}
    fields = {**OF_BOTH, **optional}
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=3)):
        members[name] = draw(fields[name])
    return members


def refused(mapping: Mapping[str, object]) -> bool:
    """Return whether a configuration is refused; if so, it is by one line that begins well."""
    try:
        configured(mapping)
    except ConfigError as error:
        told = str(error)
    else:
        return False
    assert re.fullmatch(r"servers\.json: [^\n]+", told)
    return True


@given(
    st.dictionaries(st.sampled_from(["a", "b-c", "d e"]), entries(), min_size=1, max_size=2),
    st.sampled_from(["mcpServers", "servers", ""]),
)
def test_what_the_proxy_takes_an_editor_takes(
    servers: dict[str, dict[str, object]], part: str
) -> None:
    """The schema must not cry wolf."""
    mapping: dict[str, object] = {part: servers} if part else {**servers}
    assert refused(mapping) or suits(mapping)


@given(ANYTHING)
def test_whatever_a_file_has_it_is_taken_or_refused(root: object) -> None:
    """DESIGN 11: never a traceback."""
    for mapping in ({"mcpServers": root}, {"mcpServers": {"a": root}}, {"sessionproxy": root}):
        assert refused({"b": WEATHER, **mapping}) in (True, False)


@pytest.mark.parametrize("name", ["deny_tool", "denyTools", "allow_resorces"])
def test_a_field_that_was_likely_meant_to_hide_something_is_warned_of(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Other programs have fields of their own, so it is no error; nor is it silent."""
    assert server(command="x", **{name: ["secret*"], "alwaysAllow": []}).extra.keys() == {
        name,
        "alwaysAllow",
    }
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told.startswith(f"servers.json: mcpServers.weather.{name}: not known")
    assert "deny_tools" in told or "allow_resources" in told
