"""Several servers as one: what is counted of each, and the spans that say whose a tool is, and what
it is called there (PARITY row 31: original names through renames).
"""

import pytest
from opentelemetry.trace import SpanKind

from sessionproxy.servers import configuration_from
from tests.ops.scraping import scraped
from tests.ops.spans import is_child, told, use
from tests.rig.embedded import SCRIPTED, embedded
from tests.rig.http import connect, http
from tests.rig.modern import Modern


def two() -> dict[str, object]:
    command, *arguments = SCRIPTED
    server = {"command": command, "args": arguments}
    return {"mcpServers": {"red": server, "blue": server}}


async def test_each_server_is_counted_and_traced_under_its_own_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client knows one session, and prefixed names; each server its own."""
    spans = use(monkeypatch)
    async with (
        embedded(configuration_from(two()), tracing="on") as proxy,
        connect(proxy.url) as client,
    ):
        answer = await client.request("tools/call", {"name": "red_do", "arguments": {}})
        assert "result" in answer
        label = proxy.manager.registry.awake()[0].label
        found = await scraped(proxy.base)
    counted = {"method": "tools/call", "outcome": "result"}
    assert found("requests_total", server="default", **counted) == 1
    assert found("requests_total", server="red/part", **counted) == 1
    assert found("sessions", server="blue/part", state="ready") == 0
    assert found("backends") == 1
    served, asked = spans.served("tools/call red_do"), spans.asked("tools/call do")
    assert is_child(asked, of=served)
    assert told(served)["mcp.session.id"] == told(asked)["mcp.session.id"] == label
    assert [told(span)["sessionproxy.server"] for span in (served, asked)] == ["default", "red"]
    assert told(asked)["sessionproxy.backend.name"] == "do"
    assert told(served)["gen_ai.tool.name"] == "red_do"
    (opened,) = spans.some(SpanKind.SERVER, "initialize")
    assert told(opened)["sessionproxy.server"] == "default"


async def test_what_the_proxy_asks_a_server_on_its_own_account_is_served_to_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A catalogue is of no session, though each of the servers has a part in one to be asked."""
    spans = use(monkeypatch)
    async with embedded(configuration_from(two()), tracing="on") as proxy, http() as pool:
        answer = await Modern(pool, f"{proxy.url}/s/mine").post("tools/list")
        assert answer.status_code == 200
    assert spans.some(SpanKind.CLIENT, "tools/list")
    assert not [span.name for span in spans.all() if span.kind is SpanKind.SERVER]
