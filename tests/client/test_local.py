"""Copies that were added to a proxy (PARITY 37, 38)."""

import json
from typing import Any, Final

import anyio
import mcp_types as types
import pytest
from mcp import MCPError
from mcp.server.mcpserver import MCPServer

from sessionproxy import (
    ConfigError,
    Proxy,
    ProxyClient,
    ProxyPrompt,
    ProxyResource,
    ProxyTemplate,
    ProxyTool,
    Sessions,
    create_proxy,
)
from sessionproxy.backends.names import RESOURCES
from sessionproxy.client.components import Component
from sessionproxy.client.local import Components
from tests.parity.rig import complete, facts_of, fronted, fronts, names_of, text_of, texts_of
from tests.rig.embedded import scripted
from tests.rig.http import connect

State = dict[str, Any]

CLIENT = ProxyClient(["true"])
OTHER = ProxyClient(["true"])


def copied(name: str = "do", factory: Any = CLIENT.new, **changes: Any) -> ProxyTool:  # noqa: ANN401
    tool = types.Tool(name=name, input_schema={"type": "object"})
    return ProxyTool.from_mcp_tool(factory, tool).copy(**changes)


def test_what_is_added_is_listed_by_kind_and_the_last_of_a_name_stays() -> None:
    """PARITY 38; one that is disabled is not listed."""
    components = Components()
    assert not components
    for each in (copied(title="first"), copied(title="second"), copied("off")):
        components.add(each)
    components.tools["off"].disable()
    assert components.listed("tools/list") == (
        b'{"tools":[{"name":"do","title":"second","inputSchema":{"type":"object"}}]}'
    )
    assert components.listed("prompts/list") == b'{"prompts":[]}'
    assert components.listed("ping") is None
    with pytest.raises(TypeError, match="Component is no component"):
        components.add(Component(types.Tool(name="x", input_schema={}), CLIENT.new, "x"))


def test_only_what_is_the_same_proxys_is_sent_to_its_servers() -> None:
    """PARITY 38: by the name that it has there; the rest of a request stays as it was."""
    own, factory = CLIENT.new, OTHER.new
    components = Components(own=own)
    prompt = ProxyPrompt.from_mcp_prompt(own, types.Prompt(name="greet")).copy(name="hello")
    resource = types.Resource(uri="note://one", name="one")
    template = types.ResourceTemplate(uri_template="note://{name}", name="note")
    for each in (
        copied(factory=own, name="mine"),
        copied("far", factory=factory),
        prompt,
        ProxyResource.from_mcp_resource(own, resource).copy(uri="mine://one"),
        ProxyTemplate.from_mcp_template(own, template).copy(uri_template="my://{name}"),
    ):
        components.add(each)
    sent = {
        ("tools/call", b'{"name":"mine","x":[1]}'): b'{"name":"mine","x":[1]}',
        ("tools/call", b'{"name":"far"}'): None,
        ("tools/call", b'{"name":"none"}'): None,
        ("prompts/get", b'{"name":"hello"}'): b'{"name":"greet"}',
        ("resources/read", b'{"uri":"mine://one"}'): b'{"uri":"note://one"}',
        ("resources/read", b'{"uri":"my://a%20b"}'): b'{"uri":"note://a%20b"}',
        ("resources/read", b'{"uri":"note://one"}'): None,
        ("resources/subscribe", b'{"uri":"mine://one"}'): b'{"uri":"note://one"}',
        ("resources/unsubscribe", b'{"uri":"my://a"}'): b'{"uri":"note://a"}',
        ("ping", b'{"name":"mine"}'): None,
        ("completion/complete", b'{"ref":{"type":"ref/prompt","name":"hello"}}'): (
            b'{"ref":{"type":"ref/prompt","name":"greet"}}'
        ),
        ("completion/complete", b'{"ref":{"type":"ref/resource","uri":"my://{name}"}}'): (
            b'{"ref":{"type":"ref/resource","uri":"note://{name}"}}'
        ),
        ("completion/complete", b"{}"): None,
        ("tools/call", None): None,
    }
    for (method, params), expected in sent.items():
        assert components.instead(method, params) == expected, (method, params)
    components.prompts["hello"].disable()
    assert components.instead("prompts/get", b'{"name":"hello"}') is None


UNREADABLE = ("note://{a}{b}", "note://{list*}", "note://{row-id}", "note://{unclosed")
"""Templates of servers that the SDK cannot tell a URI of."""


OWN: Final = CLIENT.new


def of_notes(template: str) -> ProxyTemplate:
    listed = types.ResourceTemplate(uri_template=template, name="note")
    return ProxyTemplate.from_mcp_template(OWN, listed)


@pytest.mark.parametrize("form", UNREADABLE)
def test_a_template_that_nobody_can_read_stays_as_it_is(form: str) -> None:
    """RFC 6570 has more forms than the SDK, and servers write what they like: what begins as it
    does may be of it, and any other URI has nothing to do with it."""
    components = Components(own=OWN)
    components.add(of_notes(form).copy(title="mine"))
    asked = b'{"uri":"note://one%20"}' if form.endswith("}") else b'{"uri":"note://{unclosed"}'
    assert components.instead("resources/read", asked) == asked
    assert components.instead("resources/read", b'{"uri":"other://one"}') is None
    components.templates[form].disable()
    assert components.instead("resources/read", asked) is None
    assert components.hides(RESOURCES, json.loads(asked)["uri"])
    assert not components.hides(RESOURCES, "other://one")


@pytest.mark.parametrize("form", UNREADABLE)
def test_such_a_template_cannot_be_renamed(form: str) -> None:
    """It is said where it is added, and not to whoever reads another resource."""
    with pytest.raises(ConfigError, match="cannot be renamed"):
        Components().add(of_notes(form).copy(uri_template="mine://{name}"))
    with pytest.raises(ConfigError, match="cannot be renamed"):
        Components().add(of_notes("note://{name}").copy(uri_template=form))
    components, changed = Components(own=OWN), of_notes("note://{name}").copy()
    components.add(changed)
    changed.uri_template = form
    assert components.instead("resources/read", b'{"uri":"note://one"}') is None


def test_a_template_that_lacks_a_variable_of_its_servers_is_refused() -> None:
    """Else all its URIs would be one at the server."""
    with pytest.raises(ConfigError, match="lacks what the server's has: name"):
        Components().add(of_notes("note://{name}").copy(uri_template="mine://{who}"))


async def test_what_is_not_there_is_told_so() -> None:
    """PARITY 38."""
    components = Components()
    for method in ("tools/call", "prompts/get", "resources/read"):
        assert await components.run(method, b'{"name":"x","uri":"x://y"}') is None


async def test_a_copy_of_the_same_proxys_is_run_in_its_callers_session_or_not_at_all() -> None:
    """DESIGN 5.1: its factory returns the proxy itself, with a session for all who use that."""
    own = CLIENT.new
    components = Components(own=own)
    components.add(copied(factory=own, name="mine"))
    with anyio.fail_after(5):
        assert await components.run("tools/call", b'{"name":"mine"}') is None


def test_a_component_has_the_fields_of_its_definition_and_no_others() -> None:
    """PARITY 28, 37: read on the mirror, changed on the copy, which leaves the mirror alone."""
    mirror = ProxyTool.from_mcp_tool(
        CLIENT.new, types.Tool(name="do", title="Do", input_schema={"type": "object"})
    )
    assert (mirror.title, mirror.input_schema) == ("Do", {"type": "object"})
    with pytest.raises(AttributeError, match="ProxyTool has no 'nonsense'"):
        _ = mirror.nonsense
    first = mirror.copy(title="First")
    second = first.copy(title="Second", name="other")
    first.description = "Changed."
    assert [each.title for each in (mirror, first, second)] == ["Do", "First", "Second"]
    assert (second.description, mirror.description) == (None, None)
    assert (second.key, second.backend_name, repr(second)) == ("other", "do", "<ProxyTool 'other'>")
    assert not hasattr(first, "no_such")


def test_what_is_changed_in_place_is_the_copys_own() -> None:
    """PARITY 37: a schema, an annotation, a tag; a provider keeps the mirror for all."""
    definition = types.Tool.model_validate(
        {
            "name": "do",
            "inputSchema": {"type": "object", "properties": {"x": {}}},
            "annotations": {"title": "Do"},
            "_meta": {"fastmcp": {"tags": ["a"]}},
        }
    )
    mirror = ProxyTool.from_mcp_tool(CLIENT.new, definition)
    before = definition.model_dump()
    for original in (mirror, mirror.copy()):
        copied = original.copy(name="mine")
        copied.input_schema["properties"].clear()
        copied.annotations.title = "Mine"
        copied.meta["fastmcp"]["tags"].append("b")
        assert original.definition.model_dump() == before
        assert copied.tags == {"a", "b"}
        assert copied.client_factory == original.client_factory
    made = ProxyResource.from_mcp_resource(CLIENT.new, types.Resource(uri="x://y", name="y")).copy()
    made.contents = (types.TextResourceContents(uri="x://y", text="held"),)
    other = made.copy()
    assert other.contents is not None
    other.contents[0].uri = "x://z"
    assert made.contents[0].uri == "x://y"


async def test_a_resource_that_a_template_made_needs_no_server() -> None:
    """PARITY 33: it holds what was read."""
    found = types.Resource(uri="note://one", name="one")
    resource = ProxyResource.from_mcp_resource(CLIENT.new, found).copy()
    text = types.TextResourceContents(uri="note://one", text="held")
    resource.contents = (text,)
    assert (await resource.read()).contents == [text]
    components = Components(own=CLIENT.new)
    components.add(resource)
    result = await components.run("resources/read", b'{"uri":"note://one"}')
    assert isinstance(result, types.ReadResourceResult)


TEXTS = {"note://one": "the first", "word://hi": "hi"}


def reading() -> MCPServer[Any]:
    """A server with a tool, a prompt, a resource and templates."""
    server = MCPServer[Any]("reading")

    @server.tool()
    def count() -> str:
        return "counted"

    @server.prompt()
    def greet() -> str:
        return "Hello"

    @server.resource("note://one")
    def one() -> str:
        return TEXTS["note://one"]

    @server.resource("word://{word}")
    def word(word: str) -> str:
        return word

    assert all((count, greet, one, word))
    return server


@pytest.mark.parametrize("sessions", ["frontend", "request", "shared"])
async def test_a_template_is_read_beside_local_components(state: State, sessions: Sessions) -> None:
    """PARITY 12: of several servers without prefixes, the one that has a template for a URI."""
    made = create_proxy(reading(), sessions=sessions, **state)
    made.mount(MCPServer("nothing"))

    @made.tool
    def local() -> str:
        return "local"

    @made.resource("mine://{what}")
    def mine(what: str) -> str:
        return f"my {what}"

    assert all((local, mine))
    texts = {**TEXTS, "mine://own": "my own"}
    async with made:
        for uri, text in texts.items():
            assert texts_of(await made.read_resource(uri)) == [text]
        with pytest.raises(MCPError):
            await made.read_resource("nobody://knows")


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_a_disabled_copy_hides_what_it_is_a_copy_of(state: State, mode: str) -> None:
    """PARITY 38: from lists, and from whoever knows its name; another copy may go on using it."""
    made = create_proxy(reading(), **state)
    async with made:
        tool = await made.get_tool("count")
        prompt = await made.get_prompt_component("greet")
        resource = await made.get_resource("note://one")
        template = await made.get_resource_template("word://{word}")
    assert tool is not None
    assert prompt is not None
    assert resource is not None
    assert template is not None
    hidden = tool.copy(), prompt.copy(), resource.copy(), template.copy()
    for each in hidden:
        each.disable()
    made.add_tool(hidden[0])
    made.add_tool(tool.copy(name="other"))
    made.add_prompt(hidden[1])
    made.add_resource(hidden[2])
    made.add_template(hidden[3])
    async with fronts(made, mode=mode) as client:
        assert await names_of(client) == ["other"]
        assert (await client.list_prompts()).prompts == []
        assert (await client.list_resources()).resources == []
        assert (await client.list_resource_templates()).resource_templates == []
        assert text_of(await client.call_tool("other", {})) == "counted"
        with pytest.raises(MCPError, match="count"):
            await client.call_tool("count", {})
        with pytest.raises(MCPError, match="greet"):
            await client.get_prompt("greet")
        for uri in TEXTS:
            with pytest.raises(MCPError, match="not found"):
                await client.read_resource(uri)
    for each in hidden:
        each.enable()
    async with fronts(made, mode=mode) as client:
        assert await names_of(client) == ["count", "other"]
        assert text_of(await client.call_tool("count", {})) == "counted"
        assert texts_of(await client.read_resource("word://hi")) == ["hi"]


def one_tool(name: str, answer: str) -> MCPServer[Any]:
    server = MCPServer[Any](answer)
    server.add_tool(lambda: answer, name=name)
    return server


async def with_copy(answer: str, state: State, **changes: object) -> tuple[Proxy, ProxyTool]:
    """A proxy with a tool `do`, and a copy of that."""
    made = create_proxy(one_tool("do", answer), **state)
    async with made:
        tool = await made.get_tool("do")
    assert tool is not None
    copy = tool.copy(**changes)
    made.add_tool(copy)
    return made, copy


@pytest.mark.parametrize(("prefix", "hidden"), [("", "do"), ("m", "m_do"), ("do", "do_do")])
async def test_a_disabled_copy_in_a_mounted_proxy_hides_its_own_original_alone(
    state: State, prefix: str, hidden: str
) -> None:
    """PARITY 38: what the proxy around it has under that name stays."""
    inner, copy = await with_copy("inner", state)
    copy.disable()
    outer = create_proxy(one_tool("do", "outer"), **state)
    outer.mount(inner, prefix=prefix)
    outer.mount(one_tool("more", "beside"), prefix="m")
    async with fronts(outer) as client:
        assert await names_of(client) == ["do", "m_more"]
        assert text_of(await client.call_tool("do", {})) == "outer"
        assert text_of(await client.call_tool("m_more", {})) == "beside"
        if hidden != "do":
            assert (await client.call_tool(hidden, {})).is_error  # of the outer one, which tries
    copy.enable()
    async with fronts(outer) as client:
        assert sorted(await names_of(client)) == sorted({"do", "m_more", hidden})


@pytest.mark.parametrize("prefixes", [("", ""), ("m", ""), ("", "n"), ("m", "n")])
async def test_a_copy_in_a_mounted_proxy_runs_at_its_own_server(
    state: State, prefixes: tuple[str, str]
) -> None:
    """PARITY 38: whatever the proxies around it have under the name that it has there; a copy of a
    copy, too."""
    inner, _ = await with_copy("inner", state, name="mine")
    middle, _ = await with_copy("middle", state, name="other")
    middle.mount(inner, prefix=prefixes[0])
    first = "_".join(filter(None, (prefixes[0], "mine")))
    async with middle:
        tool = await middle.get_tool(first)
    assert tool is not None
    middle.add_tool(tool.copy(name="again"))
    outer, _ = await with_copy("outer", state, name="third")
    outer.mount(middle, prefix=prefixes[1])
    told = {first: "inner", "again": "inner", "other": "middle", "do": "middle"}
    async with fronts(outer) as client:
        for name, answer in told.items():
            name = "_".join(filter(None, (prefixes[1], name)))
            answer = "outer" if name == "do" else answer
            assert text_of(await client.call_tool(name, {})) == answer
        assert text_of(await client.call_tool("third", {})) == "outer"


class Reluctant(MCPServer[Any]):
    """A server that refuses its first lists."""

    refusals = 1

    async def list_tools(self) -> list[Any]:
        if self.refusals:
            self.refusals -= 1
            raise MCPError(-32000, "not ready yet")
        return await super().list_tools()


@pytest.mark.parametrize("whose", ["own", "another proxy's"])
async def test_a_copy_of_what_a_copy_is_listed_as_runs_what_that_one_runs(
    whose: str, state: State
) -> None:
    """PARITY 38: of every kind, twice over; also one that takes the place of what it is of."""
    back = create_proxy(complete(), **state)
    made = back if whose == "own" else create_proxy(MCPServer("empty"), **state)
    source, before = back, ("do", "note://one", "note://{name}/{?page}", "greet")
    for n in "123":
        names = (f"t{n}", f"r{n}://one", f"m{n}://{{name}}{{?page}}", f"p{n}")
        async with source:
            tool = await source.get_tool(before[0])
            resource = await source.get_resource(before[1])
            template = await source.get_resource_template(before[2])
            prompt = await source.get_prompt_component(before[3])
        assert tool is not None
        assert resource is not None
        assert template is not None
        assert prompt is not None
        made.add_tool(tool.copy(name=names[0]))
        made.add_resource(resource.copy(uri=names[1]))
        made.add_template(template.copy(uri_template=names[2]))
        made.add_prompt(prompt.copy(name=names[3]))
        source, before = made, names
    async with made:
        again = await made.get_tool("t3")
        assert again is not None
        made.add_tool(again.copy(title="Better"))
    async with fronts(made) as client:
        for n in "123":
            assert facts_of(await client.call_tool(f"t{n}", {}))
            for uri in (f"r{n}://one", f"m{n}://it"):
                assert texts_of(await client.read_resource(uri)) == ["the first"]
            assert (await client.get_prompt(f"p{n}")).messages
            if whose == "own":
                ref = types.PromptReference(name=f"p{n}")
                completed = await client.complete(ref, {"name": "who", "value": "A"})
                assert completed.completion.values == ["Ann"]
                steps = {"steps": [{"tells": "seen"}]}
                seen = facts_of(await client.call_tool(f"t{n}", steps))["seen"]
                calls = [m["params"]["name"] for m in seen if m.get("method") == "tools/call"]
                assert set(calls) == {"do"}


@pytest.mark.parametrize("listed_between", [True, False])
async def test_two_copies_that_change_places_run_what_each_is_a_copy_of(
    listed_between: bool, state: State
) -> None:
    """PARITY 38: though both are described in the same words and one is there already."""
    server = MCPServer("two")

    def told(name: str) -> None:
        def tell() -> list[types.TextContent]:
            return [types.TextContent(text=name)]

        server.tool(name=name, structured_output=False)(tell)

    told("do")
    told("undo")
    made = create_proxy(server, **state)
    async with made:
        one, other = await made.get_tool("do"), await made.get_tool("undo")
    assert one is not None
    assert other is not None
    made.add_tool(one.copy(name="undo"))
    if listed_between:
        async with made:
            assert len(await made.list_tools()) == 2
    made.add_tool(other.copy(name="do"))
    async with made:
        assert [text_of(await made.call_tool(name)) for name in ("do", "undo")] == ["undo", "do"]


async def test_a_server_that_cannot_be_listed_now_is_not_passed_over(state: State) -> None:
    """PARITY 24: what comes first has to be asked, or the one that it stands before would run."""
    server = Reluctant("first")
    server.add_tool(lambda: "first", name="do")
    made = create_proxy(server, **state)
    made.mount(one_tool("do", "second"))

    @made.tool
    def local() -> str:
        return "local"

    assert callable(local)
    async with fronted(made) as url, connect(url) as client:
        first, again = [await client.request("tools/call", {"name": "do"}) for _ in range(2)]
        assert "refused tools/list" in first["result"]["content"][0]["text"]
        assert first["result"]["_meta"]["sessionproxy/fault"]["outcome"] == "not_executed"
        assert again["result"]["content"][0]["text"] == "first"


async def test_a_server_that_is_down_is_not_taken_for_one_without_tools(state: State) -> None:
    """PARITY 13: beside a local tool, which works on."""
    made = create_proxy(["/bin/false"], **state)

    @made.tool
    def local() -> str:
        return "local"

    assert callable(local)
    async with fronts(made) as client:
        for name, told in (("do", "exit status 1"), ("local", "local")):
            (block,) = (await client.call_tool(name, {})).content
            assert told in getattr(block, "text", "")


async def test_a_server_that_lists_nothing_is_asked_for_what_nobody_has(
    state: dict[str, Any],
) -> None:
    """PARITY 12: it refuses its lists, as it should not, and has what it does not list; that the
    proxy has a tool of its own beside it is no reason not to ask it."""
    refused = [{"replies": {"error": {"code": -32603, "message": "no lists here"}}}]
    contents = {"contents": [{"uri": "note://one", "text": "the first"}]}
    lists = ("tools/list", "resources/list", "resources/templates/list")
    command = scripted(
        on={
            **dict.fromkeys(lists, refused),
            "resources/read": [{"replies": {"result": contents}}],
        }
    )
    made = create_proxy(command, **state)

    @made.tool
    def local() -> str:
        return "local"

    assert callable(local)
    async with made:
        assert texts_of(await made.read_resource("note://one")) == ["the first"]
        assert (await made.call_tool("do", {})).structured_content is not None
        assert text_of(await made.call_tool("local", {})) == "local"
