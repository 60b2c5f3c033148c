"""What a target comes to (PARITY 3 to 10); nothing is started for it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mcp.client.session_group import SseServerParameters, StreamableHttpParameters
from mcp.server.mcpserver import MCPServer

from sessionproxy import Proxy, ProxyClient, create_proxy
from sessionproxy.backends import Target, Template
from sessionproxy.client.targets import ProxyTarget, servers_of
from sessionproxy.config import Carrier, ConfigError, settings_from
from sessionproxy.errors import BackendSilent
from sessionproxy.plan import plan_from
from sessionproxy.servers import Rules, ToolChange, configuration_from
from tests.parity.rig import complete

SETTINGS = settings_from({})

State = dict[str, Any]


def source_of(target: ProxyTarget) -> object:
    (server,) = servers_of(target, SETTINGS)
    assert (server.name, server.prefix) == ("default", "")
    return server.source


@dataclass
class StreamableHttpTransport:
    """FastMCP's, by its shape."""

    url: str
    headers: dict[str, str] = field(default_factory=dict[str, str])
    auth: object = None


@dataclass
class SSETransport(StreamableHttpTransport):
    """Its other one."""


@dataclass
class Endpoint:
    """One whose name says nothing."""

    url: str
    headers: dict[str, str] | None = None


@pytest.mark.parametrize(
    ("target", "carrier"),
    [
        (StreamableHttpParameters(url="http://h/sse"), Carrier.HTTP),
        (SseServerParameters(url="http://h/mcp"), Carrier.SSE),
        (StreamableHttpTransport("http://h/sse"), Carrier.HTTP),
        (SSETransport("http://h/mcp"), Carrier.SSE),
        (Endpoint("http://h/sse"), Carrier.SSE),
        (Endpoint("http://h/mcp"), Carrier.AUTO),
    ],
)
def test_what_an_object_says_it_is_goes_before_its_url(
    target: ProxyTarget, carrier: Carrier
) -> None:
    """PARITY 6."""
    source = source_of(target)
    assert isinstance(source, Target)
    assert source.carrier is carrier


def test_the_setting_goes_before_the_url() -> None:
    """PARITY 4: `transport` is the operator's word."""
    settings = settings_from({"transport": "http"})
    (server,) = servers_of("http://h/sse", settings)
    assert isinstance(server.source, Target)
    assert server.source.carrier is Carrier.HTTP


def test_a_credential_that_is_no_header_is_refused() -> None:
    """PARITY 6: rather than left out without a word."""
    with pytest.raises(ConfigError, match="auth cannot be taken over; give it as a header"):
        source_of(StreamableHttpTransport("http://h/mcp", auth=object()))


class Model:
    """FastMCP's `MCPConfig`, by its shape."""

    def __init__(self, **servers: dict[str, Any]) -> None:
        self.mcpServers = servers

    def model_dump(self, *, mode: str, exclude_none: bool) -> dict[str, Any]:
        assert (mode, exclude_none) == ("json", True)
        return {"mcpServers": self.mcpServers}


def test_a_configuration_may_be_a_model() -> None:
    """PARITY 10."""
    target = Model(a={"url": "http://h/mcp"}, b={"command": sys.executable})
    servers = servers_of(target, SETTINGS)
    assert [(each.name, each.prefix) for each in servers] == [("a", "a"), ("b", "b")]
    assert [type(each.source) for each in servers] == [Target, Template]


def test_rules_are_for_one_server(tmp_path: Path) -> None:
    """PARITY 14: each of several has its own, in its configuration."""
    rules = Rules(deny_tools=("x",))
    (server,) = servers_of(MCPServer("one"), SETTINGS, rules)
    assert server.rules == rules
    several = {name: {"command": sys.executable} for name in ("a", "b")}
    with pytest.raises(ConfigError, match=r"rules: there are several servers"):
        servers_of(several, SETTINGS, rules)


def test_rules_may_be_written_as_in_a_configuration() -> None:
    """PARITY 14: the same fields mean the same, a tool's new name among its changes too."""
    given: dict[str, Any] = {
        "deny_tools": ["x"],
        "rename_prompts": {"p": "q"},
        "tools": {"count": {"name": "tally", "title": "Tally"}},
    }
    rules = Rules(
        deny_tools=("x",),
        rename_prompts={"p": "q"},
        rename_tools={"count": "tally"},
        tools={"count": ToolChange(name="tally", title="Tally")},
    )
    wanted = servers_of({"mcpServers": {"a": {"command": sys.executable, **given}}}, SETTINGS)[
        0
    ].rules
    for each in (given, rules, Rules(**given), wanted):
        assert servers_of(MCPServer("one"), SETTINGS, each)[0].rules == wanted == rules


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        (Rules(deny_tools="count"), "rules.deny_tools: expected a list"),  # type: ignore[arg-type]
        ({"deny_tools": "count"}, "rules.deny_tools: expected a list"),
        (Rules(tools={"count": {"nam": "x"}}), r"rules.tools.count.nam: no such change"),  # type: ignore[dict-item]
        (Rules(tools={"count": ToolChange(name="a b")}), r"rules.tools.count.name: expected 1 to"),
        (Rules(rename_tools={"count": 3}), r"rules.rename_tools.count: expected a string"),  # type: ignore[dict-item]
        ({"deny": ["count"]}, "rules.deny: no such rule; expected some of allow_tools"),
        ({"command": "x"}, "rules.command: no such rule"),
        (["count"], "rules: expected Rules, or a mapping"),
        ("count", "rules: expected Rules, or a mapping"),
    ],
)
def test_rules_that_could_mean_nothing_are_refused(rules: Any, text: str) -> None:  # noqa: ANN401
    """DESIGN 11: bad configuration; as in a file, by the name of the field."""
    with pytest.raises(ConfigError, match=text):
        servers_of(MCPServer("one"), SETTINGS, rules)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ([], "expected a command as a list of words"),
        ([sys.executable, 1], "expected a command as a list of words"),
        (3, "this is of type int"),
        (None, "this is of type NoneType"),
        ("no-such.json", "no-such.json: No such file"),
        ("no-such.py", "no such file"),
        ("python server.py", "no such file; give a command as a list of words"),
        ("http://a b/mcp", "expected http://HOST/PATH"),
        ("http://h/m\tcp", "expected http://HOST/PATH"),
        ("program --flag", "give a command as a list of words"),
        ({}, "expected at least one server"),
        (["no-such-command"], "no such command"),
        ("ftp://h/mcp", "expected a URL"),
    ],
)
def test_what_is_no_target_is_refused_in_one_line(target: Any, text: str) -> None:  # noqa: ANN401
    """DESIGN 11: bad configuration."""
    with pytest.raises(ConfigError, match=text) as refused:
        servers_of(target, SETTINGS)
    assert "\n" not in str(refused.value)


COMMAND = [sys.executable, "-c", ""]
URL = "http://127.0.0.1:9/mcp"
BOTH: dict[str, Any] = {"a": {"command": sys.executable}, "b": {"url": URL}}
FOR_A_COMMAND = r"is for a command, and no server here is started by one"
FOR_A_URL = r"is for a server at a URL, and none here is"


@pytest.mark.parametrize("make", [create_proxy, ProxyClient])
@pytest.mark.parametrize(
    ("target", "setting", "value", "why"),
    [
        (URL, "env", {"A": "b"}, FOR_A_COMMAND),
        (URL, "cwd", "/", FOR_A_COMMAND),
        ({"b": BOTH["b"]}, "pass_env", ["A"], FOR_A_COMMAND),
        (MCPServer("a"), "env", {"A": "b"}, FOR_A_COMMAND),
        (COMMAND, "header", {"A": "b"}, FOR_A_URL),
        (COMMAND, "transport", "sse", FOR_A_URL),
        ({"a": BOTH["a"]}, "upstream_ca", "ca.pem", FOR_A_URL),
        (configuration_from(BOTH).servers[1], "header", {"A": "b"}, "say this of the server"),
        (ProxyClient(COMMAND), "env", {"A": "b"}, "say this where the ProxyClient is made"),
    ],
)
def test_what_is_said_of_a_target_of_another_kind_is_refused(
    make: Any,  # noqa: ANN401
    target: ProxyTarget,
    setting: str,
    value: object,
    why: str,
) -> None:
    """Issue 5: it would be taken and mean nothing."""
    with pytest.raises(ConfigError, match=f"^{setting}: {why}"):
        make(target, **{setting: value})


def test_what_one_of_several_servers_heeds_is_taken() -> None:
    """PARITY 11: of both kinds, in one configuration."""
    found = create_proxy(BOTH, env={"A": "b"}, upstream_ca="ca.pem", warm=1).plan().servers
    assert [type(server.source) for server in found] == [Template, Target]
    ProxyClient(BOTH, env={"A": "b"}, memory_max=0)


def test_what_counts_for_all_servers_is_heeded_by_one_when_it_starts() -> None:
    """`create_proxy`: what is mounted may do that, so nobody knows before."""
    made = create_proxy(URL, warm=1, forward_authorization=True)
    with pytest.raises(ConfigError, match=f"^warm: {FOR_A_COMMAND}"):
        made.plan()
    made.http_app()
    made.mount(COMMAND)
    assert len(made.plan().servers) == 2
    other = create_proxy(COMMAND, forward_authorization=True)
    with pytest.raises(ConfigError, match=f"^forward_authorization: {FOR_A_URL}"):
        other.run()
    other.mount(MCPServer("may have clients of its own"))
    assert len(other.plan().servers) == 2
    with pytest.raises(ConfigError, match=f"^memory_max: {FOR_A_COMMAND}"):
        ProxyClient(URL, memory_max=1 << 30)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("url", URL), ("config", "x.json"), ("mode", "shared"), ("token_file", "users"), ("port", 1)],
)
def test_a_client_refuses_what_is_for_a_proxy(setting: str, value: object) -> None:
    """`ProxyClient`: where its server is is the target, and nobody connects to it."""
    make: Any = ProxyClient
    with pytest.raises(ConfigError, match=f"^{setting}: "):
        make(COMMAND, **{setting: value})


@pytest.mark.parametrize(
    ("url", "said", "carrier"),
    [
        ("http://h/sse", "auto", Carrier.SSE),
        ("http://h/mcp", "auto", Carrier.AUTO),
        ("http://h/sse", "http", Carrier.HTTP),
    ],
)
def test_the_command_line_tells_sse_by_the_path_as_create_proxy_does(
    url: str, said: str, carrier: Carrier
) -> None:
    """PARITY 4, 22: `sessionproxy run URL` is `create_proxy` of it."""
    (server,) = plan_from(settings_from({"url": url, "transport": said}), ()).servers
    assert isinstance(server.source, Target)
    assert server.source.carrier is carrier


async def test_what_was_said_of_a_client_counts_in_a_proxy_of_it(state: State) -> None:
    """As what a configuration says of one server does; whatever else the proxy says counts, too."""
    client = ProxyClient(complete(), call_timeout=0.5, stop_grace=1.0, **state)
    proxy = create_proxy(client, call_timeout=30.0, start_timeout=7.0, **state)
    (server,) = proxy.plan().servers
    found = server.settings.call_timeout, server.settings.stop_grace, server.settings.start_timeout
    assert found == (0.5, 1.0, 7.0)
    async with proxy:
        with pytest.raises(BackendSilent, match=r"0\.5 s"):
            await proxy.call_tool("do", {"steps": [{"wait": "ever"}]})


@pytest.mark.parametrize("how", ["made of it", "mounted"])
def test_what_was_said_of_a_proxy_counts_in_another_one(how: str, state: State) -> None:
    inner = create_proxy(complete(), sessions="shared", call_timeout=3.0, **state)
    outer = create_proxy(complete() if how == "mounted" else inner, **state)
    if how == "mounted":
        outer.mount(inner, "inner")
    settings = outer.plan().servers[-1].settings
    assert (settings.mode.value, settings.call_timeout) == ("shared", 3.0)


@pytest.mark.parametrize("make", [ProxyClient, create_proxy])
def test_a_limit_that_holds_for_all_backends_is_said_of_the_proxy(
    make: Callable[..., ProxyClient | Proxy], state: State
) -> None:
    """It would be dropped without a word."""
    limited = make(complete(), memory_max=300_000_000, **state)
    with pytest.raises(ConfigError, match="memory_max: say this where the proxy is made"):
        create_proxy(limited, **state).plan()
