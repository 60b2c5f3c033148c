"""Parity rows 23 to 38: tools, resources, templates and prompts as objects."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal, cast

import anyio
import mcp_types as types
import pytest
from mcp import Client, MCPError
from mcp.server.mcpserver import MCPServer
from pydantic import BaseModel

from sessionproxy import (
    ComponentIsMirrored,
    HandlerContext,
    Proxy,
    ProxyClient,
    ProxyPrompt,
    ProxyProvider,
    ProxyResource,
    ProxyTemplate,
    ProxyTool,
    Rules,
    StatefulProxyClient,
    create_proxy,
)
from sessionproxy.client.components import Component
from tests.rig.embedded import gone, lives, scripted
from tests.rig.http import Incoming, calling, connect, http
from tests.rig.modern import Modern
from tests.rig.sdk import FORM
from tests.servers.tools import PNG

from .rig import RESULTS, complete, facts_of, fronted, fronts, names_of, text_of, texts_of

State = dict[str, Any]

TOOL: Final[dict[str, Any]] = {
    "name": "do",
    "title": "Do it",
    "description": "Does it.",
    "inputSchema": {"type": "object", "properties": {"x": {"type": "integer"}}, "x-own": [1]},
    "outputSchema": {"type": "object", "properties": {"y": {"type": "string"}}},
    "annotations": {"title": "Doer", "readOnlyHint": True, "idempotentHint": False},
    "icons": [{"src": "data:image/png;base64,AAAA", "mimeType": "image/png", "sizes": ["1x1"]}],
    "execution": {"taskSupport": "optional"},
    "_meta": {"fastmcp": {"tags": ["a", "b"]}, "x-own": {"deep": None}},
    "x-unknown": 1.5,
}
RESOURCE: Final[dict[str, Any]] = {
    "uri": "note://one",
    "name": "one",
    "title": "One",
    "description": "The first.",
    "mimeType": "text/plain",
    "size": 9,
    "annotations": {"audience": ["user"], "priority": 0.5},
    "icons": [{"src": "i.png"}],
    "_meta": {"x-own": 1},
}
TEMPLATE: Final[dict[str, Any]] = {
    "uriTemplate": "note://{name}/part{?page,size}",
    "name": "part",
    "title": "Part",
    "description": "A part.",
    "mimeType": "text/plain",
    "_meta": {"x-own": 2},
}
PROMPT: Final[dict[str, Any]] = {
    "name": "greet",
    "title": "Greet",
    "description": "Greets.",
    "arguments": [
        {"name": "who", "title": "Who", "description": "Whom to greet.", "required": True}
    ],
    "icons": [{"src": "i.png"}],
    "_meta": {"x-own": 3},
}
CALLED: Final[dict[str, Any]] = {
    "content": [
        {"type": "text", "text": "one", "annotations": {"priority": 1.0}},
        {"type": "image", "data": PNG, "mimeType": "image/png"},
        {"type": "resource_link", "uri": "note://one", "name": "one"},
    ],
    "structuredContent": {"y": ["not", "a", "string"], "n": None},
    "isError": True,
    "_meta": {"x-own": True},
}
READ: Final[dict[str, Any]] = {
    "contents": [
        {"uri": "note://one", "mimeType": "text/plain", "text": "the first"},
        {"uri": "note://one#2", "mimeType": "image/png", "blob": PNG, "_meta": {"x-own": 1}},
        {"uri": "note://one#3", "text": "ünï\u2028cödé \U0001f600"},
    ]
}
RENDERED: Final[dict[str, Any]] = {
    "description": "A greeting.",
    "messages": [
        {"role": "user", "content": {"type": "text", "text": "Look:"}},
        {"role": "assistant", "content": {"type": "image", "data": PNG, "mimeType": "image/png"}},
    ],
    "_meta": {"x-own": 1},
}
ANSWERS: Final[dict[str, Any]] = {
    "tools/list": {"tools": [TOOL]},
    "resources/list": {"resources": [RESOURCE]},
    "resources/templates/list": {"resourceTemplates": [TEMPLATE]},
    "prompts/list": {"prompts": [PROMPT]},
    "tools/call": CALLED,
    "resources/read": READ,
    "prompts/get": RENDERED,
}
DETAILED: Final = scripted(
    on={method: [{"replies": {"result": ANSWERS[method]}}] for method in ANSWERS}
)
"""A server that answers with all that there is."""

INTRODUCED: Final[dict[str, Any]] = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "tools only", "version": "1"},
}
TOOLS_ONLY: Final = scripted(
    initialize=[{"replies": {"result": INTRODUCED}}],
    on={
        "tools/list": [{"replies": {"result": {"tools": [TOOL]}}}],
        **{
            method: [{"replies": {"error": {"code": -32601, "message": "Method not found"}}}]
            for method in ("resources/list", "resources/templates/list", "prompts/list")
        },
    },
)


def plain(model: BaseModel) -> Any:  # noqa: ANN401 - JSON
    return model.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Counting:
    """A factory, and how often it was called."""

    def __init__(self, client: ProxyClient) -> None:
        self.client = client
        self.calls = 0

    def __call__(self) -> ProxyClient:
        self.calls += 1
        return self.client


@asynccontextmanager
async def detailed(state: State) -> AsyncGenerator[Counting]:
    async with ProxyClient(DETAILED, **state) as client:
        yield Counting(client)


async def seen_of(client: Client | ProxyClient, method: str, tool: str = "do") -> list[Any]:
    """Return the parameters of such requests that the quick server behind has seen."""
    told = facts_of(await client.call_tool(tool, {"steps": [{"tells": "seen"}]}))
    return [m["params"] for m in told["seen"] if m.get("method") == method]


async def uris_read(client: Client | ProxyClient, tool: str = "do") -> list[str]:
    """Return the URIs that the quick server behind was asked to read."""
    return [params["uri"] for params in await seen_of(client, "resources/read", tool)]


async def mirrors_of(provider: ProxyProvider) -> list[Component[Any]]:
    """Return a mirror of each kind."""
    return [
        *await provider.list_tools(),
        *await provider.list_resources(),
        *await provider.list_resource_templates(),
        *await provider.list_prompts(),
    ]


async def test_row_23_one_place_decides_which_backend_serves(state: State) -> None:
    """PARITY 23: the client's factory, once for each thing that a component or provider does."""
    async with detailed(state) as factory:
        provider = ProxyProvider(factory)
        tool, resource, template, prompt = await mirrors_of(provider)
        assert factory.calls == 4
        assert isinstance(tool, ProxyTool)
        assert isinstance(resource, ProxyResource)
        assert isinstance(template, ProxyTemplate)
        assert isinstance(prompt, ProxyPrompt)
        await tool.run({})
        await resource.read()
        await (await template.create_resource({"name": "a"})).read()
        await prompt.render({})
        assert factory.calls == 8
        assert await provider.get_tool("do") is not None
        assert factory.calls == 9


def with_locals(made: Proxy) -> None:
    """Give a proxy components of its own, of the names that its server has too."""

    @made.tool
    def do() -> str:
        return "here"

    @made.resource("note://one")
    def one() -> str:
        return "read here"

    @made.resource("mine://{name}")
    def mine(name: str) -> str:
        return f"made of {name} here"

    @made.prompt
    def greet() -> str:
        return "rendered here"

    assert all(map(callable, (do, one, mine, greet)))


def put_together(state: State) -> Proxy:
    """Return a proxy of a server, with another one mounted and components of its own."""
    made = create_proxy(complete(), **state)
    made.mount(complete(), prefix="far")
    with_locals(made)
    return made


async def test_row_24_local_tools_win_and_are_listed_once(state: State) -> None:
    """PARITY 24: what the proxy has itself comes first, then the rest, then what is mounted; and is
    used first."""
    made = put_together(state)
    async with fronts(made) as client:
        assert await names_of(client) == ["do", "undo", "far_do", "far_undo"]
        assert text_of(await client.call_tool("do", {})) == "here"
        assert facts_of(await client.call_tool("undo", {}))
        assert facts_of(await client.call_tool("far_do", {}))
    async with made:  # the same from this process, as components
        tool = await made.get_tool("do")
        assert tool is not None
        assert text_of(await tool.run()) == "here"
        assert await made.get_tool("no such") is None


async def test_row_25_local_resources_and_templates_win_and_are_listed_once(state: State) -> None:
    """PARITY 25: as tools; a URI of a local template is read here."""
    made = put_together(state)
    async with fronts(made) as client:
        resources = [str(each.uri) for each in (await client.list_resources()).resources]
        assert resources == ["note://one", "note://far/one"]
        assert texts_of(await client.read_resource("note://one")) == ["read here"]
        assert texts_of(await client.read_resource("note://far/one")) == ["the first"]
        templates = (await client.list_resource_templates()).resource_templates
        assert [each.uri_template for each in templates] == [
            "mine://{name}",
            "note://{name}/{?page}",
            "note://far/{name}/{?page}",
        ]
        assert texts_of(await client.read_resource("mine://it")) == ["made of it here"]
    async with made:
        resource = await made.get_resource("note://far/one")
        assert resource is not None
        assert texts_of(await resource.read()) == ["the first"]


async def test_row_26_local_prompts_win_and_are_listed_once(state: State) -> None:
    """PARITY 26: as tools."""
    made = put_together(state)
    async with fronts(made) as client:
        prompts = (await client.list_prompts()).prompts
        assert [prompt.name for prompt in prompts] == ["greet", "far_greet"]
        said = (await client.get_prompt("greet")).messages[0].content
        assert isinstance(said, types.TextContent)
        assert said.text == "rendered here"
    async with made:
        prompt = await made.get_prompt_component("greet")
        assert prompt is not None
        assert plain((await prompt.render()).messages[0])["content"]["text"] == "rendered here"


async def test_row_27_a_server_of_tools_alone_lists_none_of_the_rest(state: State) -> None:
    """PARITY 27: its "Method not found" is no error to components, nor beside other servers. A
    client in front of it alone sees what it says of itself: no such capability."""
    made = create_proxy(TOOLS_ONLY, **state)
    async with made:
        assert len(await made.list_tools()) == 1
        assert await made.list_resources() == []
        assert await made.list_resource_templates() == []
        assert await made.list_prompts() == []
        assert await made.get_prompt_component("greet") is None
    async with ProxyClient(TOOLS_ONLY, **state) as given:
        provider = ProxyProvider(lambda: given)
        assert await provider.list_prompts() == []
        assert await provider.get_resource("note://one") is None
    made.mount(TOOLS_ONLY, prefix="other")
    async with fronts(made) as client:
        assert await names_of(client) == ["do", "other_do"]
        assert (await client.list_prompts()).prompts == []
        assert (await client.list_resources()).resources == []
        assert (await client.list_resource_templates()).resource_templates == []


async def test_row_28_tools_in_front_are_those_behind_field_by_field(state: State) -> None:
    """PARITY 28: to the byte over the wire, and each field on the mirror."""
    async with fronted(create_proxy(DETAILED, **state)) as url, connect(url) as client:
        for method, expected in ANSWERS.items():
            assert (await client.request(method, {}))["result"] == expected
    async with detailed(state) as factory:
        (tool,) = await ProxyProvider(factory).list_tools()
        direct = types.Tool.model_validate(TOOL)
        for name in type(direct).model_fields:
            assert getattr(tool, name) == getattr(direct, name), name
        assert tool.tags == {"a", "b"}
        assert (tool.key, tool.backend_name, tool.is_mirrored) == ("do", "do", True)


async def test_row_29_a_tools_result_is_unchanged(state: State) -> None:
    """PARITY 29: text, image, link, structured content that breaks its schema, `isError`, `_meta`;
    called by its original name, and progress comes to the handler."""
    async with detailed(state) as factory:
        (tool,) = await ProxyProvider(factory).list_tools()
        assert plain(await tool.run({"x": 1})) == CALLED
    heard: list[float] = []

    async def report(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    async with ProxyClient(complete(), **state) as client:
        tool = await ProxyProvider(lambda: client).get_tool("do")
        assert tool is not None
        steps = {"steps": [{"progress": 3}, {"tells": "seen"}]}
        renamed = tool.copy(name="other")
        told = facts_of(await renamed.run(steps, progress_handler=report, meta={"x-own": 1}))
        sent = told["seen"][-1]["params"]
        assert (sent["name"], sent["_meta"]["x-own"]) == ("do", 1)
        assert heard == [1, 2, 3]


async def test_row_30_a_rename_keeps_the_name_at_the_backend(state: State) -> None:
    """PARITY 30: by a copy of each kind, by a rule, by a prefix."""
    async with detailed(state) as factory:
        tool, resource, template, prompt = await mirrors_of(ProxyProvider(factory))
        copies = [
            tool.copy(name="mine"),
            resource.copy(uri="mine://one"),
            template.copy(uri_template="mine://{name}"),
            prompt.copy(name="mine"),
        ]
        assert [each.key for each in copies] == ["mine", "mine://one", "mine://{name}", "mine"]
        assert [each.backend_name for each in copies] == [
            "do",
            "note://one",
            "note://{name}/part{?page,size}",
            "greet",
        ]
    async with ProxyClient(complete(), **state) as quick:
        provider = ProxyProvider(lambda: quick)
        (resource,) = await provider.list_resources()
        (template,) = await provider.list_resource_templates()
        (prompt,) = await provider.list_prompts()
        await resource.copy(uri="mine://one").read()
        await template.copy(uri_template="mine://{name}").create_resource({"name": "two"})
        await prompt.copy(name="mine").render()
        assert await uris_read(quick) == ["note://one", "note://two/"]
        assert [each["name"] for each in await seen_of(quick, "prompts/get")] == ["greet"]
    rules = Rules(rename_tools={"do": "make"}, rename_prompts={"greet": "hello"})
    inner = create_proxy(complete(), rules=rules, **state)
    outer = create_proxy(complete(), **state)
    outer.mount(inner, prefix="in")
    async with fronts(outer) as client:
        assert await names_of(client) == ["do", "undo", "in_make", "in_undo"]
        steps = {"steps": [{"tells": "seen"}]}
        told = facts_of(await client.call_tool("in_make", steps))
        assert told["seen"][-1]["params"]["name"] == "do"
        assert (await client.get_prompt("in_hello")).messages


async def test_row_31_span_attributes_name_the_provider_and_the_original(state: State) -> None:
    """PARITY 31: `provider.type`, and name, URI or template at the backend; of a copy too."""
    async with detailed(state) as factory:
        found = await mirrors_of(ProxyProvider(factory))
    provider = ("sessionproxy.provider.type", "ProxyProvider")
    names = [
        ("sessionproxy.backend.name", "do"),
        ("sessionproxy.backend.uri", "note://one"),
        ("sessionproxy.backend.uri_template", "note://{name}/part{?page,size}"),
        ("sessionproxy.backend.name", "greet"),
    ]
    renamed = [{"name": "mine"}, {"uri": "mine://one"}, {"uri_template": "mine://{name}"}]
    for component, name, new in zip(found, names, [*renamed, {"name": "mine"}], strict=True):
        copied = component.copy(**new)
        assert copied.key != component.key
        for each in (component, copied):
            assert each.get_span_attributes() == dict([provider, name])


async def test_row_32_all_contents_of_a_resource_are_read(state: State) -> None:
    """PARITY 32: several, text and binary, equal to what the server says."""
    async with detailed(state) as factory:
        (resource,) = await ProxyProvider(factory).list_resources()
        direct = types.Resource.model_validate(RESOURCE)
        for name in type(direct).model_fields:
            assert getattr(resource, name) == getattr(direct, name), name
        assert plain(await resource.read()) == READ


NAMED: Final = {"name": "a b/ü?", "page": "2&3", "size": "10"}
EXPANDED: Final = "note://a%20b%2F%C3%BC%3F/part?page=2%263&size=10"


async def test_row_33_a_template_is_expanded_at_the_backend_with_its_own_uri(
    state: State,
) -> None:
    """PARITY 33: path and query, percent-encoded (RFC 6570); the resource holds what was read."""
    async with detailed(state) as factory:
        (template,) = await ProxyProvider(factory).list_resource_templates()
        direct = types.ResourceTemplate.model_validate(TEMPLATE)
        for name in type(direct).model_fields:
            assert getattr(template, name) == getattr(direct, name), name
        assert template.expand(NAMED) == EXPANDED
        assert template.expand({"name": "x"}) == "note://x/part"
        resource = await template.create_resource(NAMED)
        assert (resource.uri, resource.name, resource.mime_type) == (EXPANDED, "part", "text/plain")
        calls = factory.calls
        assert plain(await resource.read()) == READ
        assert factory.calls == calls, "it is held, not read again"
    async with ProxyClient(complete(), **state) as client:
        (template,) = await ProxyProvider(lambda: client).list_resource_templates()
        await template.create_resource({"name": "a b/ü", "page": "2&3"})
        assert await uris_read(client) == ["note://a%20b%2F%C3%BC/?page=2%263"]


async def test_row_33_percent_encoding_survives_a_prefix_and_a_renamed_copy(state: State) -> None:
    """PARITY 33: the backend gets the very bytes."""
    made = create_proxy({"p": _server(complete()), "q": _server(complete())}, **state)
    async with fronts(made) as client:
        for rest in ("a%20b%2Fc/?page=2%263", "%C3%BC/", "a+b/?page=%2B"):
            await client.read_resource(f"note://p/{rest}")
            told = facts_of(await client.call_tool("p_do", {"steps": [{"tells": "seen"}]}))
            assert told["seen"][-2]["params"]["uri"] == f"note://{rest}"
    made = create_proxy(complete(), **state)
    async with made:
        template = await made.get_resource_template("note://{name}/{?page}")
    assert template is not None
    made.add_template(template.copy(uri_template="mine://{name}{?page}"))
    async with fronts(made) as client:
        assert texts_of(await client.read_resource("mine://a%20b%2Fc?page=2%263"))
        assert await uris_read(client) == ["note://a%20b%2Fc/?page=2%263"]


def _server(words: tuple[str, ...]) -> dict[str, object]:
    return {"command": words[0], "args": list(words[1:])}


async def test_row_34_a_prompt_is_rendered_with_images_description_and_meta(state: State) -> None:
    """PARITY 34: its arguments are on the mirror, and go to the server."""
    async with detailed(state) as factory:
        (prompt,) = await ProxyProvider(factory).list_prompts()
        direct = types.Prompt.model_validate(PROMPT)
        for name in type(direct).model_fields:
            assert getattr(prompt, name) == getattr(direct, name), name
        assert plain(await prompt.render({"who": "Ann"})) == RENDERED
    async with ProxyClient(complete(), **state) as client:
        (prompt,) = await ProxyProvider(lambda: client).list_prompts()
        await prompt.render({"who": "Ann"})
        (sent,) = await seen_of(client, "prompts/get")
        assert (sent["name"], sent["arguments"]) == ("greet", {"who": "Ann"})


async def test_row_35_starting_spawns_nothing(state: State, tmp_path: Path) -> None:
    """PARITY 35: neither a proxy, nor one with providers, nor a client that is only made."""
    ledger = tmp_path / "ledger"
    options: State = {**state, "env": [f"TESTS_LEDGER={ledger}"]}
    made = create_proxy(complete(), **options)
    made.add_provider(ProxyProvider(ProxyClient(complete(), **options).new), namespace="far")
    made.mount(ProxyClient(complete(), **options), prefix="client")
    async with fronted(made), made:
        await anyio.lowlevel.checkpoint()
    assert not ledger.exists()
    async with made:
        await made.list_tools()
    assert ledger.read_text().count('"start"') >= 3


TASKS: Final = scripted(
    on={
        "tools/list": [{"replies": {"result": {"tools": [TOOL]}}}],
        "tools/call": [{"replies": {"result": {"task": {"taskId": "t1", "status": "working"}}}}],
        "tasks/get": [{"replies": {"result": {"taskId": "t1", "status": "completed"}}}],
        "tasks/result": [{"replies": {"result": CALLED}}],
    }
)
REQUIRED: Final = scripted(
    on={"tools/call": [{"replies": {"error": {"code": -32601, "message": "needs a task"}}}]}
)


async def test_row_36_the_relay_passes_tasks_through(state: State) -> None:
    """PARITY 36: with one server, and with several."""
    for made in (
        create_proxy(TASKS, **state),
        create_proxy({"a": _server(TASKS), "b": _server(complete())}, **state),
    ):
        name = "do" if len(made.plan().servers) == 1 else "a_do"
        async with fronted(made) as url, connect(url) as client:
            call = {"name": name, "arguments": {}, "task": {"ttl": 60000}}
            begun = (await client.request("tools/call", call))["result"]
            assert begun["task"] == {"taskId": "t1", "status": "working"}
            got = (await client.request("tasks/get", {"taskId": "t1"}))["result"]
            assert got["status"] == "completed"
            ended = (await client.request("tasks/result", {"taskId": "t1"}))["result"]
            assert ended["structuredContent"] == CALLED["structuredContent"]


async def test_row_36_typed_components_run_at_once_or_say_why_not(state: State) -> None:
    """PARITY 36: they ask for no task; a tool that must be one fails with the server's own
    words."""
    async with detailed(state) as factory:
        (tool,) = await ProxyProvider(factory).list_tools()
        assert tool.execution == types.ToolExecution(task_support="optional")
        assert plain(await tool.run()) == CALLED
    async with ProxyClient(REQUIRED, **state) as client:
        tool = ProxyTool.from_mcp_tool(lambda: client, types.Tool.model_validate(TOOL))
        with pytest.raises(MCPError, match="needs a task"):
            await tool.run()


async def test_row_36_an_added_copy_that_is_asked_for_a_task_runs_at_once(state: State) -> None:
    """PARITY 36: as nobody declares that it could not; its server is asked for no task."""
    async with ProxyClient(complete(), **state) as client:
        tool = await ProxyProvider(lambda: client).get_tool("do")
        assert tool is not None
        made = create_proxy(MCPServer("empty"), **state)
        made.add_tool(tool.copy(name="mine"))
        async with fronted(made) as url, connect(url) as front:
            call = calling({"tells": "seen"}, name="mine")
            answer = await front.request("tools/call", {**call, "task": {"ttl": 60000}})
            (sent,) = (
                each["params"]
                for each in answer["result"]["structuredContent"]["seen"]
                if each.get("method") == "tools/call"
            )
        assert sent["name"] == "do"
        assert "task" not in sent


CHANGES: Final[list[Callable[[Component[Any]], object]]] = [
    lambda component: setattr(component, "title", "x"),
    lambda component: setattr(component, "backend_name", "x"),
    lambda component: setattr(component, "own", 1),
    lambda component: component.disable(),
    lambda component: component.enable(),
]


@pytest.mark.parametrize("change", CHANGES)
async def test_row_37_a_mirror_cannot_be_changed_and_says_copy(
    change: Callable[[Component[Any]], object],
) -> None:
    """PARITY 37: for every kind; nothing has changed, and the same on a copy is allowed."""
    client = ProxyClient(complete())
    mirrors: list[Component[Any]] = [
        ProxyTool.from_mcp_tool(client.new, types.Tool.model_validate(TOOL)),
        ProxyResource.from_mcp_resource(client.new, types.Resource.model_validate(RESOURCE)),
        ProxyTemplate.from_mcp_template(
            client.new, types.ResourceTemplate.model_validate(TEMPLATE)
        ),
        ProxyPrompt.from_mcp_prompt(client.new, types.Prompt.model_validate(PROMPT)),
    ]
    for mirror in mirrors:
        before = dict(vars(mirror))
        with pytest.raises(ComponentIsMirrored, match=r"change a copy: component\.copy\(\)"):
            change(mirror)
        assert vars(mirror) == before
        copied = mirror.copy()
        change(copied)
        assert vars(mirror) == before
    made = create_proxy(complete())
    for mirror, add in zip(
        mirrors, (made.add_tool, made.add_resource, made.add_template, made.add_prompt), strict=True
    ):
        with pytest.raises(ComponentIsMirrored, match=r"copy\(\)"):
            cast("Callable[[object], None]", add)(mirror)


async def test_row_38_one_tool_is_renamed_or_hidden_by_configuration(state: State) -> None:
    """PARITY 38: what is hidden is unknown to whoever calls it, too."""
    for rules, names, hidden in (
        (Rules(rename_tools={"do": "mine"}), ["mine", "undo"], "do"),
        (Rules(deny_tools=("do",)), ["undo"], "do"),
    ):
        async with fronts(create_proxy(complete(), rules=rules, **state)) as client:
            assert await names_of(client) == names
            with pytest.raises(MCPError, match="Unknown tool"):
                await client.call_tool(hidden, {})
            assert facts_of(await client.call_tool(names[0], {}))


async def test_row_38_a_copy_is_changed_added_and_runs_in_its_callers_session(
    state: State,
) -> None:
    """PARITY 38, 59: `copy()`, then `add_tool`; the copy and what it is a copy of have one backend,
    which is the session's own, also while the proxy is in use from this process."""
    made = create_proxy(complete(), **state)
    async with made:
        tool = await made.get_tool("do")
        assert tool is not None
        made.add_tool(tool.copy(name="mine", description="Mine."))
        same = tool.copy(title="Better")
        made.add_tool(same)
        resource, prompt = await made.get_resource("note://one"), None
        assert resource is not None
        made.add_resource(resource.copy(uri="mine://one"))
        prompt = await made.get_prompt_component("greet")
        assert prompt is not None
        made.add_prompt(prompt.copy(name="hello"))
        async with fronted(made) as url:
            async with Client(url, mode="legacy") as one, Client(url, mode="legacy") as two:
                pids: list[int] = []
                for client in (one, two):
                    listed = (await client.list_tools()).tools
                    assert [each.name for each in listed] == ["mine", "do", "undo"]
                    assert listed[0].description == "Mine."
                    assert listed[1].title == "Better"
                    told = [
                        facts_of(await client.call_tool(name, {}))
                        for name in ("mine", "do", "undo", "mine")
                    ]
                    assert len({each["pid"] for each in told}) == 1
                    counts = [each["count"] for each in told]
                    assert counts == list(range(counts[0], counts[0] + 4))
                    pids.append(told[0]["pid"])
                    read = await client.read_resource("mine://one")
                    assert texts_of(read) == ["the first"]
                    assert (await client.get_prompt("hello")).messages
                    ref = types.PromptReference(name="hello")
                    completed = await client.complete(ref, {"name": "who", "value": "A"})
                    assert completed.completion.values == ["Ann"]
                assert pids[0] != pids[1]
        same.disable()


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_row_38_what_a_copy_asks_and_tells_comes_to_its_caller(
    mode: str, state: State
) -> None:
    """PARITY 38: elicitation and progress, in both eras."""
    asked: list[str] = []
    heard: list[float] = []

    async def elicited(context: object, params: types.ElicitRequestParams) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content={"name": "Ann"})

    async def report(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    made = create_proxy(complete(), **state)
    async with made:
        tool = await made.get_tool("do")
    assert tool is not None
    made.add_tool(tool.copy(name="mine"))
    async with fronts(made, mode=mode, elicitation_callback=elicited) as client:
        steps = {"steps": [{"progress": 2}, {"ask": FORM}]}
        await client.call_tool("mine", steps, progress_callback=report)
        assert (asked, heard) == (["Who?"], [1, 2])


@pytest.mark.parametrize("prefix", ["", "m"])
async def test_row_38_a_copy_in_a_mounted_proxy_runs_in_its_callers_session(
    prefix: str, state: State
) -> None:
    """PARITY 38, 59, DESIGN 5.1: of every kind; two users at once have a backend each, which is the
    one that they have for all else of that proxy."""
    inner = create_proxy(complete(), **state)
    async with inner:
        tool = await inner.get_tool("do")
        resource = await inner.get_resource("note://one")
        template = await inner.get_resource_template("note://{name}/{?page}")
        prompt = await inner.get_prompt_component("greet")
    assert tool is not None
    assert resource is not None
    assert template is not None
    assert prompt is not None
    inner.add_tool(tool.copy(name="mine"))
    inner.add_resource(resource.copy(uri="mine://one"))
    inner.add_template(template.copy(uri_template="my://{name}{?page}"))
    inner.add_prompt(prompt.copy(name="hello"))
    outer = create_proxy(MCPServer("empty"), **state)
    outer.mount(inner, prefix=prefix)
    head, path = (f"{prefix}_", f"{prefix}/") if prefix else ("", "")
    pids: list[int] = []
    async with fronted(outer) as url:
        async with Client(url, mode="legacy") as one, Client(url, mode="legacy") as two:

            async def use(client: Client) -> None:
                own = facts_of(await client.call_tool(f"{head}do", {}))
                steps: State = {"steps": [{"sleep": 0.2}]}
                told = [facts_of(await client.call_tool(f"{head}mine", steps)) for _ in range(2)]
                assert {each["pid"] for each in told} == {own["pid"]}
                assert own["count"] < told[0]["count"] == told[1]["count"] - 1
                pids.append(own["pid"])
                assert texts_of(await client.read_resource(f"mine://{path}one")) == ["the first"]
                assert await uris_read(client, f"{head}do") == ["note://one"]
                await client.read_resource(f"my://{path}a%20b")
                assert await uris_read(client, f"{head}do") == ["note://one", "note://a%20b/"]
                assert (await client.get_prompt(f"{head}hello")).messages
                ref = types.PromptReference(name=f"{head}hello")
                completed = await client.complete(ref, {"name": "who", "value": "A"})
                assert completed.completion.values == ["Ann"]

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(use, one)
                tasks.start_soon(use, two)
    assert len(set(pids)) == 2


@pytest.mark.parametrize("on_loss", ["tell", "annotate"])
async def test_row_38_a_loss_is_seen_through_a_copy(
    on_loss: Literal["tell", "annotate"], state: State
) -> None:
    """PARITY 38, DESIGN 5.12: once, as by the name of what it is a copy of."""
    made = create_proxy(complete(), on_loss=on_loss, **state)
    async with made:
        tool = await made.get_tool("do")
    assert tool is not None
    made.add_tool(tool.copy(name="mine"))
    async with fronted(made) as url, connect(url) as client:
        for dying, asking in (("mine", "mine"), ("do", "mine"), ("mine", "do")):
            exits = calling({"exit": 1}, name=dying)
            assert (await client.request("tools/call", exits))["result"]["isError"]
            told = (await client.request("tools/call", calling(name=asking)))["result"]
            if on_loss == "tell":
                assert "was lost" in told["content"][0]["text"]
                assert told["_meta"]["sessionproxy/fault"]["kind"] == "state_lost"
            else:
                assert "sessionproxy/loss" in told["_meta"]
            after = (await client.request("tools/call", calling(name="mine")))["result"]
            assert "_meta" not in after
            assert after["structuredContent"]["pid"]


async def test_row_38_a_resource_that_was_copied_can_be_subscribed_to(state: State) -> None:
    """PARITY 38: the server is told, and what it says of the resource is heard."""
    made = create_proxy(complete(), **state)
    async with made:
        resource = await made.get_resource("note://one")
    assert resource is not None
    made.add_resource(resource.copy(title="Better"))
    about = {"uri": "note://one"}
    async with fronted(made) as url, connect(url) as client:
        await client.do()
        for method in ("resources/subscribe", "resources/unsubscribe"):
            assert "result" in await client.request(method, about)
        seen = (await client.do({"tells": "seen"}))["seen"]
        said = [m["method"] for m in seen if m.get("params", {}).get("uri") == about["uri"]]
        assert said == ["resources/subscribe", "resources/unsubscribe"]


UPDATED: Final = "notifications/resources/updated"
LAST: Final = "notifications/prompts/list_changed"


@asynccontextmanager
async def with_a_copied_resource(prefix: str, state: State) -> AsyncGenerator[tuple[str, str, str]]:
    """Serve a proxy with `mine://one`, a copy of its `note://one`, mounted under a prefix; yield
    its URL, and what the two are called there."""
    inner = create_proxy(complete(), **state)
    async with inner:
        resource = await inner.get_resource("note://one")
    assert resource is not None
    inner.add_resource(resource.copy(uri="mine://one"))
    outer = create_proxy(MCPServer("empty"), **state)
    outer.mount(inner, prefix=prefix)
    path = f"{prefix}/" if prefix else ""
    async with fronted(outer) as url:
        yield url, f"mine://{path}one", f"note://{path}one"


def changing(uri: str) -> State:
    """The step in which a server tells that a resource has changed."""
    return {"note": {"method": UPDATED, "params": {"uri": uri}}}


@pytest.mark.parametrize("prefix", ["", "m"])
async def test_row_38_a_copied_resource_is_told_of_by_the_name_that_was_subscribed_to(
    prefix: str, state: State
) -> None:
    """PARITY 38, 2025-11-25 server/resources#subscriptions: by both, where both were; a resource
    beneath it has no name of its own under the copy."""
    do = f"{prefix}_do" if prefix else "do"
    async with with_a_copied_resource(prefix, state) as (url, mine, note):
        async with connect(url) as client, client.listen() as listening:

            async def told(changed: str) -> list[str]:
                await client.do(changing(changed), {"note": {"method": LAST}}, name=do)
                uris: list[str] = []
                while (message := await listening.message())["method"] == UPDATED:
                    uris.append(message["params"]["uri"])
                return uris

            await client.do(name=do)
            beneath = f"{note}/part"
            for method, uri, heard, deeper in (
                ("subscribe", mine, [mine], [mine]),
                ("subscribe", note, [mine, note], [mine, beneath]),
                ("unsubscribe", mine, [note], [beneath]),
            ):
                assert "result" in await client.request(f"resources/{method}", {"uri": uri})
                assert await told("note://one") == heard
                assert await told("note://one/part") == deeper


async def test_row_38_a_copy_and_its_original_are_subscribed_to_one_by_one(state: State) -> None:
    """PARITY 38: the server is told to say no more of it once neither is subscribed to."""
    async with with_a_copied_resource("", state) as (url, mine, note), connect(url) as client:

        async def seen() -> list[str]:
            said = (await client.do({"tells": "seen"}))["seen"]
            return [m["method"] for m in said if m.get("params", {}).get("uri") == "note://one"]

        for uri in (note, mine):
            assert "result" in await client.request("resources/subscribe", {"uri": uri})
        assert "result" in await client.request("resources/unsubscribe", {"uri": note})
        assert await seen() == ["resources/subscribe", "resources/subscribe"]
        assert "result" in await client.request("resources/unsubscribe", {"uri": mine})
        assert (await seen())[-1] == "resources/unsubscribe"


async def test_row_38_a_refused_subscription_to_a_copy_is_none(state: State) -> None:
    """PARITY 38: it keeps nobody from ending the one that there is."""
    refused = {"error": {"code": -32000, "message": "not now"}}
    answers = {**RESULTS, "resources/unsubscribe": {}}
    on = {method: [{"replies": {"result": answers[method]}}] for method in answers}
    command = scripted(on={**on, "resources/subscribe": [{"replies": refused}]})
    made = create_proxy(command, **state)
    async with made:
        resource = await made.get_resource("note://one")
    assert resource is not None
    made.add_resource(resource.copy(uri="mine://one"))
    async with fronted(made) as url, connect(url) as client:
        await client.do()
        answer = await client.request("resources/subscribe", {"uri": "mine://one"})
        assert answer["error"] == refused["error"]
        assert "result" in await client.request("resources/unsubscribe", {"uri": "note://one"})
        said = (await client.do({"tells": "seen"}))["seen"]
        assert "resources/unsubscribe" in [message.get("method") for message in said]


async def test_row_38_modern_clients_hear_of_a_copied_resource(state: State) -> None:
    """PARITY 38, 2026-07-28 basic/patterns/subscriptions: each by what it listens for; the one who
    leaves takes nothing from the other."""
    async with with_a_copied_resource("", state) as (url, mine, note), http() as pool:
        client = Modern(pool, url)
        await client.call(name="do")

        async def asked() -> list[str]:
            found = await client.call({"tells": "seen"}, name="do")
            return [message.get("method") for message in found["structuredContent"]["seen"]]

        def listening(uri: str) -> AbstractAsyncContextManager[Incoming]:
            filters = {"notifications": {"resourceSubscriptions": [uri]}}
            return client.open("subscriptions/listen", filters)

        async with listening(mine) as to_mine:
            async with listening(note) as to_note:
                for stream in (to_mine, to_note):
                    await stream.until("notifications/subscriptions/acknowledged")
                while (await asked()).count("resources/subscribe") < 2:
                    pass  # whose they are is being found out
                await client.call(changing("note://one"), name="do")
                for stream, uri in ((to_mine, mine), (to_note, note)):
                    assert (await stream.until(UPDATED))["params"]["uri"] == uri
            await client.call(changing("note://one"), name="do")
            assert (await to_mine.until(UPDATED))["params"]["uri"] == mine
            assert "resources/unsubscribe" not in await asked()


@pytest.mark.parametrize("whose", ["own", "another proxy's"])
async def test_row_38_a_copy_is_and_answers_what_its_server_has_written(
    whose: str, state: State
) -> None:
    """PARITY 38, DESIGN 5.4: but for what was changed; unknown fields too, and with no defaults of
    ours. A client of 2026-07-28 has what its era demands."""
    unknown = {"x-unknown": {"n": None}}
    answers = {method: {**ANSWERS[method], **unknown} for method in ANSWERS}
    answers["tools/call"].pop("isError")
    answers["resources/list"] = {"resources": [{**RESOURCE, **unknown}]}
    answers["prompts/list"] = {"prompts": [{**PROMPT, **unknown}]}
    answers["resources/templates/list"] = {"resourceTemplates": [{**TEMPLATE, **unknown}]}
    on = {method: [{"replies": {"result": answers[method]}}] for method in answers}
    back = create_proxy(scripted(on=on), **state)
    front = back if whose == "own" else create_proxy(MCPServer("empty"), **state)
    async with back:
        tool = await back.get_tool("do")
        resource = await back.get_resource("note://one")
        template = await back.get_resource_template(TEMPLATE["uriTemplate"])
        prompt = await back.get_prompt_component("greet")
    assert tool is not None
    assert resource is not None
    assert template is not None
    assert prompt is not None
    hints = tool.annotations.model_copy(update={"title": "Mine"})
    front.add_tool(tool.copy(name="mine", description="Ours.", title=None, annotations=hints))
    front.add_resource(resource.copy(uri="mine://one"))
    front.add_template(template.copy(uri_template="my://{name}/part{?page,size}"))
    front.add_prompt(prompt.copy(name="hi"))
    changed = {**TOOL, "name": "mine", "description": "Ours."}
    changed["annotations"] = {**TOOL["annotations"], "title": "Mine"}
    del changed["title"]
    listed: dict[str, tuple[str, State]] = {
        "tools/list": ("tools", changed),
        "resources/list": ("resources", {**RESOURCE, **unknown, "uri": "mine://one"}),
        "resources/templates/list": (
            "resourceTemplates",
            {**TEMPLATE, **unknown, "uriTemplate": "my://{name}/part{?page,size}"},
        ),
        "prompts/list": ("prompts", {**PROMPT, **unknown, "name": "hi"}),
    }
    asked: list[tuple[str, State]] = [
        ("tools/call", {"name": "mine", "arguments": {}}),
        ("resources/read", {"uri": "mine://one"}),
        ("resources/read", {"uri": "my://it/part"}),
        ("prompts/get", {"name": "hi"}),
    ]
    async with fronted(front) as url, http() as pool:
        async with connect(url) as client:
            for method, (member, expected) in listed.items():
                assert (await client.request(method))["result"][member][0] == expected
            for method, params in asked:
                assert (await client.request(method, params))["result"] == answers[method]
        modern = Modern(pool, url)
        for method, params in asked:
            result = (await modern.post(method, params)).json()["result"]
            assert result.pop("resultType") == "complete"
            assert ("ttlMs" in result) == ("cacheScope" in result) == (method == "resources/read")
            same = {key: value for key, value in answers[method].items() if key != "_meta"}
            assert {key: result[key] for key in same} == same


async def test_row_38_a_copy_of_another_servers_tool_runs_there(state: State) -> None:
    """PARITY 38: a stateful client keeps a backend for each session that calls it; a disabled copy
    is neither listed nor called."""
    stateful = StatefulProxyClient(complete(), **state)
    mirror = ProxyTool.from_mcp_tool(stateful.new_stateful, types.Tool.model_validate(TOOL))
    made = create_proxy(MCPServer("empty"), **state)
    added, off = mirror.copy(name="far"), mirror.copy(name="off")
    made.add_tool(added)
    made.add_tool(off)
    off.disable()
    async with fronted(made) as url:
        async with Client(url, mode="legacy") as one, Client(url, mode="legacy") as two:
            assert await names_of(one) == ["far"]
            first, again = [facts_of(await one.call_tool("far", {})) for _ in range(2)]
            assert (again["pid"], again["count"]) == (first["pid"], first["count"] + 1)
            assert facts_of(await two.call_tool("far", {}))["pid"] != first["pid"]
            with pytest.raises(MCPError):
                await one.call_tool("off", {})


@pytest.mark.parametrize("how", ["copy", "copy of a proxy in use", "tool"])
async def test_row_38_what_is_used_of_another_proxy_runs_in_a_session_for_each_caller(
    how: str, state: State
) -> None:
    """PARITY 38, 48, 59: two overlapping calls: what each logs and asks comes to its own caller; a
    caller's session there goes with the caller's."""
    back = create_proxy(complete(), **state)
    front = create_proxy(MCPServer("empty"), **state)
    if how == "tool":

        @front.tool(name="mine")
        async def mine(steps: list[Any]) -> dict[str, Any]:
            async with back:
                return facts_of(await back.call_tool("do", {"steps": steps}))

        assert callable(mine)
    else:
        tool = await back.get_tool("do")
        assert tool is not None
        front.add_tool(tool.copy(name="mine"))
    async with AsyncExitStack() as held:
        own: list[int] = []
        if how == "copy of a proxy in use":
            await held.enter_async_context(back)
            own.append(facts_of(await back.call_tool("do"))["pid"])
        url = await held.enter_async_context(fronted(front))
        async with connect(url) as ann, connect(url) as bob:
            used = [await each.do(name="mine") for each in (ann, ann, bob)]
            assert [each["count"] for each in used] == [1, 2, 1]
            assert used[0]["pid"] == used[1]["pid"] != used[2]["pid"]
            steps = {"log": "begun"}, {"wait": "go"}, {"log": "secret"}, {"ask": FORM}
            async with ann.doing(*steps, name="mine", number="ann") as to_ann:
                await to_ann.until("notifications/message")
                async with bob.doing(
                    {"log": "begun"}, {"wait": "go"}, name="mine", number="bob"
                ) as to_bob:
                    await to_bob.until("notifications/message")  # newer than the one that asks
                    await ann.do({"release": "go"}, name="mine")
                    assert (await to_ann.message())["params"]["data"] == "secret"
                    question = await to_ann.until("elicitation/create")
                    given = {"action": "accept", "content": {"name": "Ann"}}
                    await ann.respond(question["id"], result=given)
                    facts = (await to_ann.answer())["result"]["structuredContent"]
                    assert [each["result"] for each in facts["answers"]] == [given]
                    await bob.do({"release": "go"}, name="mine")
                    assert "result" in await to_bob.message()
            await ann.delete()
            await gone(used[0]["pid"])
            assert lives(used[2]["pid"])
        if own:
            again = facts_of(await back.call_tool("do"))
            assert (again["pid"], again["count"]) == (own[0], 2)
    await gone(used[2]["pid"])


async def test_a_mounted_proxys_hooks_and_its_clients_handlers_both_stand(state: State) -> None:
    """PARITY 19, 74: what is around a server adds up."""
    seen: list[str] = []

    async def own(context: HandlerContext, params: types.ElicitRequestParams) -> types.ElicitResult:
        seen.append(f"handler: {params.message}")
        return types.ElicitResult(action="decline")

    async def hook(request: Any, call_next: Any) -> Any:  # noqa: ANN401 - not looked at here
        if request.method == "tools/call":
            seen.append(f"hook: {request.name}")
        return await call_next(request)

    inner = create_proxy(ProxyClient(complete(), elicitation_handler=own, **state), **state)
    inner.add_hook(hook)
    outer = create_proxy(complete(), **state)
    outer.mount(ProxyClient(inner, log_handler=None, **state), prefix="in")
    async with fronts(outer) as client:
        await client.call_tool("in_do", {"steps": [{"ask": FORM}]})
    assert seen == ["hook: do", "handler: Who?"]


async def test_row_14_a_tool_chosen_by_its_tags_may_be_called_before_it_was_listed(
    state: State,
) -> None:
    """PARITY 14: with several servers as with one; what has no such tag is unknown."""
    tagged = {**TOOL, "name": "tagged"}
    bare = {"name": "bare", "inputSchema": {"type": "object"}}
    words = scripted(on={"tools/list": [{"replies": {"result": {"tools": [tagged, bare]}}}]})
    chosen = {**_server(words), "include_tags": ["a"]}
    for target, prefix in (({"x": chosen}, ""), ({"x": chosen, "y": _server(complete())}, "x_")):
        async with create_proxy(target, **state) as made:
            assert facts_of(await made.call_tool(f"{prefix}tagged"))
            with pytest.raises(MCPError, match="Unknown tool"):
                await made.call_tool(f"{prefix}bare")
