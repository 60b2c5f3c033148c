"""What the current Python SDK's own client, unmodified, can be asked and told, on any transport.

Neighbours: tests of the frontends.
"""

from typing import Final, cast

import anyio
import mcp_types as types
from mcp import Client
from mcp.client import Transport
from mcp.client.session import ClientRequestContext

from tests.rig.embedded import scripted
from tests.rig.http import PATIENCE, Json

TOOL: Final = {"name": "do", "inputSchema": {"type": "object"}}
LISTS: Final[dict[str, Json]] = {
    "tools/list": {"tools": [TOOL]},
    "resources/list": {"resources": []},
    "resources/templates/list": {"resourceTemplates": []},
    "prompts/list": {"prompts": []},
}
LISTING: Final = scripted(
    on={method: [{"replies": {"result": result}}] for method, result in LISTS.items()}
)
"""A backend whose lists are lists, as clients and the catalogue want them."""

FORM: Final[Json] = {
    "method": "elicitation/create",
    "params": {"message": "Who?", "requestedSchema": {"type": "object", "properties": {}}},
}


async def exercise(transport: Transport, mode: str, *, version: str) -> None:
    """List, call, be asked, hear of progress, be told a log message, cancel; the backend is
    `LISTING`. `version` is what must have been agreed upon."""
    asked: list[str] = []
    logged: list[object] = []
    reported: list[float] = []

    async def elicited(
        context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content={"name": "Ann"})

    async def log(params: types.LoggingMessageNotificationParams) -> None:
        logged.append(params.data)

    async def report(progress: float, total: float | None, message: str | None) -> None:
        reported.append(progress)

    with anyio.fail_after(6 * PATIENCE):
        async with Client(
            transport,
            mode=mode,
            elicitation_callback=elicited,
            logging_callback=log,
            log_level="info" if mode != "legacy" else None,
        ) as client:
            assert client.protocol_version == version
            assert [tool.name for tool in (await client.list_tools()).tools] == ["do"]
            steps = [{"progress": 2}, {"log": "said"}, {"ask": FORM}]
            first = await client.call_tool("do", {"steps": steps}, progress_callback=report)
            assert not first.is_error
            assert (asked, logged, reported) == (["Who?"], ["said"], [1, 2])
            with anyio.move_on_after(0.1):
                await client.call_tool("do", {"steps": [{"wait": "ever"}]})
            last = await client.call_tool("do", {"steps": [{"tells": "seen"}]})
            seen = cast("list[Json]", (last.structured_content or {})["seen"])
            said = [message["method"] for message in seen if "method" in message]
            assert said[-2] == "notifications/cancelled"
