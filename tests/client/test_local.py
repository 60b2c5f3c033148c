"""Copies that were added to a proxy (PARITY 37, 38)."""

from typing import Any

import mcp_types as types
import pytest

from sessionproxy import ProxyClient, ProxyPrompt, ProxyResource, ProxyTemplate, ProxyTool
from sessionproxy.client.components import Component
from sessionproxy.client.local import Components

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


async def test_what_is_not_there_is_told_so() -> None:
    """PARITY 38."""
    components = Components()
    for method in ("tools/call", "prompts/get", "resources/read"):
        assert await components.run(method, b'{"name":"x","uri":"x://y"}') is None


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
