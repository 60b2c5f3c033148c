"""A client's own calls: what comes before the answer is handled in order, and before it."""

import asyncio  # noqa: TID251 - a task of a user's
from contextvars import Context
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import mcp_types as types

from sessionproxy import HandlerContext, ProxyClient
from sessionproxy.client.handlers import LOG, Handlers
from sessionproxy.client.link import MAX_UNTOLD_BYTES, Desk
from tests.rig.embedded import scripted


def do(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"steps": list(steps)}


async def test_progress_and_log_messages_of_a_call_are_handled_in_order_before_it_returns(
    tmp_path: Path,
) -> None:
    """PARITY 43, 44: though the handler for the first one takes the longest."""
    heard: list[object] = []

    async def log(params: types.LoggingMessageNotificationParams) -> None:
        await anyio.sleep(0.05 if not heard else 0)
        heard.append(params.data)

    async def report(progress: float, total: float | None, message: str | None) -> None:
        await anyio.sleep(0.01)
        heard.append(progress)

    client = ProxyClient(scripted(), log_handler=log, state_dir=str(tmp_path / "s"))
    async with client:
        steps = [{"log": "a"}, {"progress": 3}, {"log": "b"}]
        await client.call_tool("do", do(*steps), progress_handler=report)
        assert heard == ["a", 1, 2, 3, "b"]


async def test_a_clients_progress_handler_hears_of_calls_that_have_none_of_their_own(
    tmp_path: Path,
) -> None:
    """PARITY 44: `progress_handler` of the client."""
    heard: list[float] = []

    async def report(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    client = ProxyClient(scripted(), progress_handler=report, state_dir=str(tmp_path / "s"))
    async with client:
        await client.call_tool("do", do({"progress": 2}))
    assert heard == [1, 2]


async def test_a_handler_is_cancelled_when_the_server_takes_its_question_back(
    tmp_path: Path,
) -> None:
    """PARITY 42."""
    running: list[str] = []

    async def elicited(
        context: HandlerContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        running.append(params.message)
        try:
            await anyio.sleep(3600)
        finally:
            running.clear()
        return types.ElicitResult(action="cancel")

    question: dict[str, Any] = {
        "method": "elicitation/create",
        "params": {"message": "?", "requestedSchema": {"type": "object", "properties": {}}},
        "cancel": {"reason": "enough"},
    }
    client = ProxyClient(scripted(), elicitation_handler=elicited, state_dir=str(tmp_path / "s"))
    async with client:
        await client.call_tool("do", do({"ask": {**question}}, {"sleep": 0.05}))
        await client.ping()
        assert running == []


async def test_a_handler_that_fails_fails_its_question_alone(tmp_path: Path) -> None:
    """PARITY 42: the server gets an error, and the client goes on."""

    async def rooted(context: HandlerContext) -> types.ListRootsResult:
        raise RuntimeError("no")

    client = ProxyClient(scripted(), roots_handler=rooted, state_dir=str(tmp_path / "s"))
    async with client:
        found = (
            await client.call_tool("do", do({"ask": {"method": "roots/list"}}))
        ).structured_content
        assert found is not None
        assert "error" in found["answers"][0]
        await client.ping()


async def test_a_handler_that_is_cancelled_by_what_it_waits_for_fails_alone(
    tmp_path: Path,
) -> None:
    """DESIGN 5.1: a task of its own was cancelled; the client of all does not end with that."""

    async def cancelled() -> None:
        task = asyncio.create_task(asyncio.sleep(3600))
        task.cancel()
        await task

    async def rooted(context: HandlerContext) -> types.ListRootsResult:
        await cancelled()
        return types.ListRootsResult(roots=[])

    async def log(params: types.LoggingMessageNotificationParams) -> None:
        await cancelled()

    state = str(tmp_path / "s")
    client = ProxyClient(scripted(), roots_handler=rooted, log_handler=log, state_dir=state)
    with anyio.fail_after(30):
        async with client:
            steps = do({"log": "a"}, {"ask": {"method": "roots/list"}}, {"log": "b"})
            found = (await client.call_tool("do", steps)).structured_content
            assert found is not None
            assert "error" in found["answers"][0]
            await client.ping()


async def test_what_waits_for_a_slow_handler_is_bounded_in_bytes() -> None:
    """DESIGN 5.3: a server may log megabytes at a time, without end."""
    heard: list[int] = []
    go = anyio.Event()

    async def log(params: types.LoggingMessageNotificationParams) -> None:
        await go.wait()
        heard.append(len(str(params.data)))

    large = b'{"level":"info","data":"%b"}' % (b"x" * 4_000_000)
    async with Desk(Handlers(log=log)) as desk:
        for _ in range(100):
            desk.tell(LOG, large, Context(), about="a call")
        told = anyio.Event()
        desk.once_told("a call", told.set)
        go.set()
        with anyio.fail_after(30):
            await told.wait()
        assert heard == [4_000_000] * (MAX_UNTOLD_BYTES // len(large))
        desk.tell(LOG, large, Context(), about="a call")
        with anyio.fail_after(30):
            while len(heard) == MAX_UNTOLD_BYTES // len(large):
                await anyio.lowlevel.checkpoint()
