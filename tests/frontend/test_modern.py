"""The modern endpoint, from outside: what is neither its ladder's, its keys' nor its handles'."""

from collections.abc import Sequence

import httpx2
import pytest

from tests.rig.embedded import embedded
from tests.rig.http import Client, Json, calling, connect, http, request
from tests.rig.modern import VERSION, Modern

LOSS = "sessionproxy/loss"
REFUSED: Json = {"replies": {"error": {"code": -32603, "message": "no"}}}


async def test_with_annotate_a_loss_waits_for_a_result_that_can_tell_of_it() -> None:
    """DESIGN 5.12, 7: an error has no place for the note, and the loss is never silent."""
    async with embedded(on_loss="annotate") as proxy, http() as pool:
        client = Modern(pool, proxy.url)
        await client.call()
        assert (await client.call({"exit": 3}))["isError"]
        answer = (await client.post("tools/call", calling(REFUSED))).json()
        assert answer["error"]["code"] == -32603
        result = await client.call()
        assert result["_meta"][LOSS]["reason"] == "backend_exit"
        assert "state was lost" in result["content"][-1]["text"]
        assert LOSS not in (await client.call())["_meta"]


# -- heads -----------------------------------------------------------------------------------------

VERSION_HEADER = ("mcp-protocol-version", VERSION)


@pytest.mark.parametrize(
    "twice", [VERSION_HEADER, ("mcp-protocol-version", "2025-11-25"), ("mcp-method", "tools/call")]
)
async def test_a_header_that_is_there_twice_is_a_mismatch(twice: tuple[str, str]) -> None:
    """FAULTS, Security: duplicates refused, 400 with -32020, and under the request's own id."""
    async with embedded() as proxy, http() as pool:
        sent = Modern(pool, proxy.url).build("tools/call", calling())
        lines: Sequence[tuple[str, str]] = [*sent.headers.items(), twice]
        again = httpx2.Request("POST", proxy.url, headers=lines, content=sent.content)
        answer = await pool.send(again)
        assert answer.status_code == 400
        assert (answer.json()["id"], answer.json()["error"]["code"]) == (1, -32020)
        assert len(proxy.manager.registry) == 0


async def test_a_list_goes_on_nowhere() -> None:
    """2026-07-28 server/utilities/pagination#error-handling: every list is one page."""
    async with embedded() as proxy, http() as pool:
        client = Modern(pool, proxy.url)
        answer = await client.post("tools/list", {"cursor": "from-another-server"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32602)
        for nowhere in ("", None):
            assert (await client.post("tools/list", {"cursor": nowhere})).status_code == 200


@pytest.mark.parametrize("version", [None, "2025-11-25", "2099-01-01"])
async def test_a_modern_request_whose_head_names_another_revision_is_a_mismatch(
    version: str | None,
) -> None:
    """2026-07-28 basic/transports/streamable-http#protocol-version-header: a client that takes it
    for an answer of the handshake era would fall back for no reason."""
    async with embedded() as proxy, http() as pool:
        sent = Modern(pool, proxy.url).build("tools/call", calling())
        del sent.headers["mcp-protocol-version"]
        if version is not None:
            sent.headers["mcp-protocol-version"] = version
        answer = await pool.send(sent)
        assert answer.status_code == 400
        assert (answer.json()["id"], answer.json()["error"]["code"]) == (1, -32020)
        assert len(proxy.manager.registry) == 0


async def test_a_request_of_a_session_is_one_of_the_handshake_era_whatever_it_speaks_of() -> None:
    """DESIGN 9: the era is decided for each request."""
    said = {"io.modelcontextprotocol/protocolVersion": VERSION}
    async with embedded() as proxy, connect(proxy.url) as client:
        answer = await client.request("tools/call", calling(_meta=said))
        assert "result" in answer
        begun: Json = {"protocolVersion": "2025-11-25", "capabilities": {}, "_meta": said}
        response = await Client(client.http, proxy.url).post(request("initialize", begun))
        assert "mcp-session-id" in response.headers
