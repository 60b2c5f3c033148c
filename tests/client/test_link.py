"""A client's own calls: what comes before the answer is handled in order, and before it; and their
session, which begins anew when it is over."""

import asyncio  # noqa: TID251 - a task of a user's
from contextvars import Context
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import mcp_types as types
import pytest

from sessionproxy import HandlerContext, ProxyClient, ProxyError, create_proxy
from sessionproxy.client.handlers import LOG, Handlers
from sessionproxy.client.link import MAX_UNTOLD_BYTES, Desk
from sessionproxy.core.state import EndReason, StopReason
from sessionproxy.errors import StateLost
from tests.parity.rig import complete
from tests.parity.ways import do, found
from tests.rig.embedded import SCRIPTED, gone, scripted, until


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
        facts = found(await client.call_tool("do", do({"ask": {"method": "roots/list"}})))
        assert "error" in facts["answers"][0]
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
            facts = found(await client.call_tool("do", steps))
            assert "error" in facts["answers"][0]
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


@pytest.mark.parametrize("make", [create_proxy, ProxyClient])
async def test_a_loss_is_told_of_once_to_who_relies_on_what_was_lost(
    make: Any,  # noqa: ANN401
    state: dict[str, Any],
) -> None:
    """DESIGN 7: a list, or a ping, relies on nothing; so who asks no more often than `idle` for
    these gets an answer each time."""
    async with make(complete(), idle=0.3, **state) as held:
        pid = found(await held.call_tool("do"))["pid"]
        for _ in range(2):
            await gone(pid)
            assert len(await held.list_tools()) == 2
            await held.ping()
        with pytest.raises(StateLost, match=r"state was lost .* \(idle for "):
            await held.call_tool("do")
        assert found(await held.call_tool("do"))["pid"] != pid


async def test_of_several_servers_the_one_that_was_lost_is_named(state: dict[str, Any]) -> None:
    """DESIGN 7: by a proxy that is used from this process; the others go on."""
    server = {"command": SCRIPTED[0], "args": list(SCRIPTED[1:])}
    async with create_proxy({"mcpServers": {"a": server, "b": server}}, **state) as held:
        pid = found(await held.call_tool("a_do"))["pid"]
        assert found(await held.call_tool("b_do"))["count"] == 1
        with pytest.raises(ProxyError, match="Server 'a': The backend ended"):
            await held.call_tool("a_do", do({"exit": 1}))
        await gone(pid)
        assert found(await held.call_tool("b_do"))["count"] == 2
        with pytest.raises(StateLost, match="Server 'a': The previous session state was lost"):
            await held.call_tool("a_do")
        assert found(await held.call_tool("a_do"))["count"] == 1


@pytest.mark.parametrize(
    "reason", [EndReason.EXPIRED, EndReason.EVICTED, EndReason.MAX_AGE, EndReason.KILLED]
)
async def test_a_session_that_is_over_though_it_was_not_left_begins_anew(
    reason: EndReason, state: dict[str, Any], tmp_path: Path
) -> None:
    """DESIGN 7: a client in front does so itself, on 404; here nobody else could. All who ask get
    the same one, with all that was set up, and hear of the loss once; one who does not wait for it
    takes nothing from the others."""
    closed = tmp_path / "closed"
    gate = f'while test -e {closed}; do sleep 0.02; done; exec "$@"'
    async with ProxyClient(["/bin/sh", "-c", gate, "sh", *complete()], **state) as client:
        await client.set_logging_level("warning")
        await client.subscribe_resource("x://1")
        pid = found(await client.call_tool("do"))["pid"]
        manager, session = client.connection.running.front.manager, client.connection.link.session
        assert session is not None
        if reason in (EndReason.EXPIRED, EndReason.EVICTED):
            session.stop(StopReason.IDLE)
            await session.stopped.wait()
        manager.end(session, reason)
        closed.touch()
        first = anyio.CancelScope()
        async with anyio.create_task_group() as tasks:

            async def give_up() -> None:
                with first:
                    await client.list_tools()

            tasks.start_soon(give_up)
            for _ in range(3):
                tasks.start_soon(client.list_tools)
            await until(lambda: manager.counts.opened == 2)
            first.cancel()
            closed.unlink()
        assert manager.counts.opened == 3, "the second one was given up"
        with pytest.raises(StateLost, match=r"^The previous session state was lost "):
            await client.call_tool("do")
        facts = found(await client.call_tool("do", do({"tells": "seen"})))
        assert facts["pid"] != pid
        await gone(pid)
        seen = [message.get("method") for message in facts["seen"]]
        assert {"logging/setLevel", "resources/subscribe"} <= set(seen)
        assert seen.index("notifications/initialized") < seen.index("logging/setLevel")


async def test_a_session_that_cannot_begin_anew_says_why_and_is_tried_again(
    state: dict[str, Any], tmp_path: Path
) -> None:
    """DESIGN 11: in words for who uses it."""
    broken = tmp_path / "broken"
    command = ["/bin/sh", "-c", f'test -e {broken} && exit 3; exec "$@"', "sh", *scripted()]
    async with ProxyClient(command, **state) as client:
        await client.call_tool("do")
        session = client.connection.link.session
        assert session is not None
        client.connection.running.front.manager.end(session, EndReason.MAX_AGE)
        broken.touch()
        with pytest.raises(ProxyError, match=r"^The backend .* exit status 3"):
            await client.call_tool("do")
        broken.unlink()
        with pytest.raises(StateLost, match="greatest age"):
            await client.call_tool("do")
        assert found(await client.call_tool("do"))["count"] == 1
