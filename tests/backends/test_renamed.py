"""One server under the operator's rules, and what clients see of it (PARITY 14)."""

from typing import Final

import pytest

from sessionproxy.servers import Configuration
from tests.rig.embedded import embedded, scripted
from tests.rig.http import Json, calling, connect, http
from tests.rig.modern import Modern
from tests.rig.several import listing, names, servers

TAGGED: Final[list[Json]] = [
    {"name": name, "inputSchema": {}, "_meta": {"fastmcp": {"tags": tags}}}
    for name, tags in (("open", ["public"]), ("shut", ["secret"]), ("plain", []))
]


def ruled(command: tuple[str, ...], *, several: bool, **rules: object) -> Configuration:
    """A configuration of one server, or of that and another one; either way it is `s`."""
    found = {"s": {"command": command, **rules}}
    return servers(**found, other=scripted()) if several else servers(**found)


@pytest.fixture(params=["alone", "with another one"])
def several(request: pytest.FixtureRequest) -> bool:
    return request.param != "alone"


async def test_what_is_hidden_cannot_be_used_by_name(several: bool) -> None:
    """PARITY 14: hidden is not only unlisted; both eras."""
    rules: Json = {
        "deny_tools": ["d*"],
        "rename_tools": {"read": "look"},
        "deny_resources": ["file://*"],
        "allow_prompts": ["p"],
    }
    command = listing(tools=["do", "read"], prompts=["p", "q"], resources=["file:///x", "note://x"])
    configuration, prefix = ruled(command, several=several, **rules), "s_" if several else ""
    at = "s/" if several else ""
    async with embedded(configuration) as proxy, connect(proxy.url) as client, http() as pool:
        assert await names(client, "tools/list", "tools", "name") == [f"{prefix}look"]
        assert await names(client, "prompts/list", "prompts", "name") == [f"{prefix}p"]
        shown = await names(client, "resources/list", "resources", "uri")
        assert shown == [f"note://{at}x"]
        modern = Modern(pool, proxy.url)
        for name in ("do", "read"):
            answer = await client.request("tools/call", calling(name=prefix + name))
            assert answer["error"]["message"] == f"Unknown tool: {prefix}{name}"
            told = (await modern.post("tools/call", calling(name=prefix + name))).json()
            assert told["error"]["message"] == f"Unknown tool: {prefix}{name}"
        for method in ("resources/read", "resources/subscribe"):
            answer = await client.request(method, {"uri": f"file://{at}/x"})
            assert answer["error"]["code"] == -32002
        answer = await client.request("prompts/get", {"name": f"{prefix}q"})
        assert answer["error"]["code"] == -32602
        seen = (await client.do({"tells": "seen"}, name=f"{prefix}look"))["seen"]
        called = [m["params"]["name"] for m in seen if m.get("method") == "tools/call"]
        assert called == ["read"], "the server knows it by its own name, and of no other call"


async def test_a_tool_that_was_not_listed_yet_is_judged_by_its_tags(several: bool) -> None:
    """PARITY 14: a call without a list before it."""
    configuration = ruled(listing(tools=TAGGED), several=several, exclude_tags=["secret"])
    prefix = "s_" if several else ""
    async with embedded(configuration) as proxy, connect(proxy.url) as client:
        for name in ("shut", "unknown"):
            answer = await client.request("tools/call", calling(name=prefix + name))
            assert answer["error"]["message"] == f"Unknown tool: {prefix}{name}"
        for name in ("open", "plain"):
            assert await client.do(name=prefix + name)
        shown = await names(client, "tools/list", "tools", "name")
        assert shown == [f"{prefix}open", f"{prefix}plain"]


async def test_a_tool_that_is_let_in_by_its_tag_can_be_called_at_once(several: bool) -> None:
    """PARITY 14: `include_tags`; before its list is known, none is let in."""
    configuration = ruled(listing(tools=TAGGED), several=several, include_tags=["public"])
    prefix = "s_" if several else ""
    async with embedded(configuration) as proxy, connect(proxy.url) as client:
        assert await client.do(name=f"{prefix}open")
        for name in ("shut", "plain"):
            answer = await client.request("tools/call", calling(name=prefix + name))
            assert answer["error"]["message"] == f"Unknown tool: {prefix}{name}"


async def test_the_end_of_a_server_over_its_list_is_told_as_such() -> None:
    """DESIGN 11: the call fails since the server died, not since there is no such tool."""
    dies = scripted(on={"tools/list": [{"exit": 4}]})
    configuration = ruled(dies, several=False, exclude_tags=["secret"])
    async with embedded(configuration) as proxy, connect(proxy.url) as client:
        answer = await client.request("tools/call", calling())
        assert answer["result"]["content"][0]["text"] == "The backend ended: exit status 4."


async def test_losing_a_renamed_server_is_told_as_of_any_other() -> None:
    """DESIGN 5.12: what stands between changes nothing about the life of a session."""
    configuration = ruled(scripted(), several=False, rename_tools={"do": "act"})
    async with embedded(configuration) as proxy, connect(proxy.url) as client:
        await client.request("tools/call", calling({"exit": 1}, name="act"))
        told = await client.request("tools/call", calling(name="act"))
        assert told["result"]["_meta"]["sessionproxy/fault"]["kind"] == "state_lost"
        assert (await client.do(name="act"))["count"] == 1


async def test_updates_and_questions_pass_a_renamed_server() -> None:
    """DESIGN 8: news belongs to its call though another request goes to the backend for it."""
    configuration = ruled(scripted(), several=False, rename_tools={"do": "act"})
    roots = {"method": "roots/list"}
    async with embedded(configuration) as proxy, connect(proxy.url) as client, http() as pool:
        meta = {"progressToken": 3}
        async with client.doing(
            {"progress": 1}, {"ask": roots}, name="act", _meta=meta
        ) as incoming:
            assert (await incoming.message())["params"]["progressToken"] == 3
            asked = await incoming.until("roots/list")
            await client.respond(asked["id"], result={"roots": []})
            assert (await incoming.answer())["result"]
        modern = Modern(pool, proxy.url)
        result = await modern.call({"ask": roots}, name="act")
        assert result["resultType"] == "input_required"
