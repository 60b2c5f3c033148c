"""Two users' overlapping sessions on two servers, and the end of one server in the middle (issue,
"Shown by" 2), with the Python SDK's own unmodified client, in both eras."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

import anyio
import httpx2
import mcp_types as types
import psutil
import pytest
from mcp import Client
from mcp.client.session import ClientRequestContext, IncomingMessage
from mcp.client.streamable_http import streamable_http_client
from pydantic import FileUrl

from tests.rig.embedded import PYTHON, Embedded, embedded, gone
from tests.rig.several import servers

pytestmark = [
    # 2026-07-28 has dropped methods that servers and clients of the handshake era live by.
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]

PATIENCE: Final = 60.0
EVERYTHING: Final = (PYTHON, "-m", "tests.servers.everything")
SERVERS: Final = servers(one=EVERYTHING, two=(*EVERYTHING, "--era", "handshake"))
USERS: Final = ("ann", "bob")


class User:
    """One user's client, and all that it was asked and told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[str] = []
        self.logged: list[str] = []
        self.updated: list[str] = []
        self.client: Client
        self._more = anyio.Event()

    async def elicited(
        self, context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        self.asked.append(params.message)
        content: dict[str, str | int | float | bool | list[str] | None]
        content = {"username": self.name, "email": f"{self.name}@x.y"}
        return types.ElicitResult(action="accept", content=content)

    async def sampled(
        self, context: ClientRequestContext, params: types.CreateMessageRequestParams
    ) -> types.CreateMessageResult:
        text = types.TextContent(type="text", text=f"{self.name}'s model")
        return types.CreateMessageResult(role="assistant", content=text, model="m")

    async def roots(self, context: ClientRequestContext) -> types.ListRootsResult:
        return types.ListRootsResult(roots=[types.Root(uri=FileUrl(f"file:///{self.name}"))])

    async def log(self, params: types.LoggingMessageNotificationParams) -> None:
        self.logged.append(params.level)

    async def heard(self, message: IncomingMessage) -> None:
        if isinstance(message, types.ResourceUpdatedNotification):
            self.updated.append(str(message.params.uri))
            self._more.set()
            self._more = anyio.Event()

    async def updates(self, count: int) -> list[str]:
        """Return what has changed, once it is so much."""
        with anyio.fail_after(PATIENCE):
            while len(self.updated) < count:
                await self._more.wait()
        return self.updated

    async def call(self, tool: str, **arguments: object) -> str:
        result = await self.result(tool, **arguments)
        assert not result.is_error, text_of(result)
        return text_of(result)

    async def result(self, tool: str, **arguments: object) -> types.CallToolResult:
        with anyio.fail_after(PATIENCE):
            return await self.client.call_tool(tool, arguments)


def text_of(result: types.CallToolResult) -> str:
    (block,) = result.content
    assert isinstance(block, types.TextContent)
    return block.text


@asynccontextmanager
async def connected(proxy: Embedded, name: str, mode: str) -> AsyncGenerator[User]:
    user = User(name)
    pool = httpx2.AsyncClient(
        headers={"authorization": f"Bearer {name}"}, timeout=PATIENCE, trust_env=False
    )
    transport = streamable_http_client(proxy.url, http_client=pool)
    async with (
        pool,
        Client(
            transport,
            mode=mode,
            elicitation_callback=user.elicited,
            sampling_callback=user.sampled,
            list_roots_callback=user.roots,
            logging_callback=user.log,
            message_handler=user.heard,
            log_level="info" if mode != "legacy" else None,
        ) as user.client,
    ):
        yield user


def first_servers(proxy: Embedded) -> set[int]:
    """The processes that are `one`; the clients' lists may have started all."""
    return {pid for pid in proxy.processes() if "--era" not in psutil.Process(pid).cmdline()}


@asynccontextmanager
async def watching(user: User, mode: str, uri: str) -> AsyncGenerator[None]:
    """Hear of a resource's changes, as the era has it."""
    if mode == "legacy":
        await user.client.subscribe_resource(uri)  # pyright: ignore[reportDeprecated] - of this era
        yield
        return
    async with (
        user.client.listen(resource_subscriptions=[uri]) as subscription,
        anyio.create_task_group() as tasks,
    ):

        async def hear() -> None:
            async for _ in subscription:  # what it brings, the message handler is told too
                pass

        tasks.start_soon(hear)
        yield
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_the_end_of_one_server_is_felt_by_one_user_and_told_once(
    mode: str, tmp_path: Path
) -> None:
    """Issue, "Shown by" 2: the other server's calls, and the other user's, go on."""
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"{u} {sha256(u.encode()).hexdigest()}\n" for u in USERS))
    async with embedded(SERVERS, token_file=str(tokens)) as proxy:
        async with connected(proxy, "ann", mode) as ann, connected(proxy, "bob", mode) as bob:
            before = first_servers(proxy)
            await everything(ann, "one")
            of_ann = first_servers(proxy) - before
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(everything, ann, "two")
                tasks.start_soon(everything, bob, "one")
                tasks.start_soon(everything, bob, "two")
            if mode == "legacy":
                await ann.client.set_logging_level("info")  # pyright: ignore[reportDeprecated] - of this era
            watched = "test://one/watched-resource"
            async with (
                watching(ann, mode, watched),
                watching(bob, mode, watched),
                anyio.create_task_group() as tasks,
            ):
                assert await ann.call("one_test_trigger_resource_updated")
                assert await ann.updates(1) == [watched]
                lasting = anyio.Event()
                tasks.start_soon(wait_for, ann, "two", lasting)
                tasks.start_soon(wait_for, bob, "one", lasting)
                await cut_off(ann, of_ann)
                lasting.set()
                assert await bob.call("one_test_simple_text")
                assert await ann.call("two_test_simple_text")
                told = await ann.result("one_test_simple_text")
                assert told.is_error
                assert "Server 'one': The previous session state was lost" in text_of(told)
                ann.logged.clear()
                assert await ann.call("one_test_trigger_resource_updated")
                assert await ann.updates(2) == [watched] * 2, "subscribed anew"
                assert await ann.call("one_test_logging_tool")
                assert ann.logged == ["info"], "at the level that was set"
                assert bob.updated == []
                async with anyio.create_task_group() as calls:
                    for user in (ann, bob):
                        for name in ("one", "two"):
                            calls.start_soon(everything, user, name)
                tasks.cancel_scope.cancel()


async def everything(user: User, name: str) -> None:
    """Call a server's tools that ask the client something."""
    message = f"{user.name} at {name}"
    told = await user.call(f"{name}_test_elicitation", message=message)
    assert f'"username": "{user.name}"' in told
    assert message in user.asked
    assert all(each.startswith(user.name) for each in user.asked), user.asked
    told = await user.call(f"{name}_test_sampling", prompt="?")
    assert told == f"LLM response: {user.name}'s model"
    assert f"file:///{user.name}" in await user.call(f"{name}_test_list_roots")


async def wait_for(user: User, name: str, lasting: anyio.Event) -> None:
    """A call that is in flight while another server ends; then it is cancelled."""
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def end() -> None:
                await lasting.wait()
                scope.cancel()

            tasks.start_soon(end)
            result = await user.result(f"{name}_test_wait", name="x")
            raise AssertionError(result)


async def cut_off(user: User, pids: set[int]) -> None:
    """Kill the server of a user in the middle of a call."""
    began = anyio.Event()
    results: list[types.CallToolResult] = []

    async def report(progress: float, total: float | None, message: str | None) -> None:
        began.set()

    async def call() -> None:
        with anyio.fail_after(PATIENCE):
            results.append(
                await user.client.call_tool("one_test_wait", {}, progress_callback=report)
            )

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        with anyio.fail_after(PATIENCE):
            await began.wait()
        for pid in pids:
            psutil.Process(pid).kill()
    await gone(*pids)
    (failed,) = results
    assert failed.is_error
    assert text_of(failed).startswith("Server 'one': The backend ended")
