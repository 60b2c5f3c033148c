"""Clients of one era and servers that know only the other, with a real proxy between them.

What the SDK's client, unmodified, is asked, told and answered there must be what the same client is
asked, told and answered by the same server that speaks its own era, on a pipe and without a proxy.
Neighbours: `tests.eras` has the bridges one by one, on virtual time; `test_conformance` has the
official suite.
"""

import json
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, TypeAlias

import anyio
import httpx2
import mcp_types as types
import pytest
from mcp import Client, MCPError
from mcp.client.session import ClientRequestContext, IncomingMessage
from mcp.client.stdio import StdioServerParameters
from mcp.client.subscriptions import (
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)
from pydantic import BaseModel, FileUrl

from sessionproxy.eras import calls
from tests.rig.embedded import Embedded, embedded, scripted, until
from tests.rig.http import Json, calling, http
from tests.rig.modern import Modern
from tests.rig.proxy import EVERYTHING, ROOT, Proxy, lasting
from tests.servers.tools import PNG

pytestmark = [
    # 2026-07-28 has dropped methods that servers and clients of the handshake era live by.
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]

PATIENCE: Final = 30.0
"""Seconds for anything that should happen at once, on a busy machine too."""

SESSION: Final = "sessionproxy/session"
SERVER_INFO: Final = "io.modelcontextprotocol/serverInfo"
WATCHED: Final = "test://watched-resource"
ME: Final = types.Implementation(name="a-client", title="A client", version="7")


@dataclass(frozen=True)
class Bridge:
    """A proxy whose clients are of one era, and whose server only knows the other."""

    running: Proxy
    mode: str

    @property
    def modern(self) -> bool:
        """Of its clients."""
        return self.mode == "auto"

    @property
    def url(self) -> str:
        return self.running.url

    def alone(self) -> StdioServerParameters:
        """The server that only knows the era of the clients, without a proxy."""
        arguments = [*EVERYTHING[1:], "--era", "modern" if self.modern else "handshake"]
        return StdioServerParameters(command=EVERYTHING[0], args=arguments, cwd=ROOT)


@pytest.fixture(scope="module")
def before_handshake() -> Generator[Proxy]:
    with lasting((*EVERYTHING, "--era", "handshake")) as found:
        yield found


@pytest.fixture(scope="module")
def before_modern() -> Generator[Proxy]:
    with lasting((*EVERYTHING, "--era", "modern")) as found:
        yield found


@pytest.fixture(params=["modern clients", "handshake clients"])
def bridge(request: pytest.FixtureRequest, before_handshake: Proxy, before_modern: Proxy) -> Bridge:
    if request.param == "modern clients":
        return Bridge(before_handshake, "auto")
    return Bridge(before_modern, "legacy")


def plain(model: BaseModel) -> Json:
    return model.model_dump(by_alias=True, mode="json", exclude_none=True)


class Visitor:
    """Somebody who answers whatever is asked, and keeps all that is heard."""

    def __init__(self) -> None:
        self._asked: list[object] = []
        self._told: list[object] = []

    def client(self, server: str | StdioServerParameters, mode: str) -> Client:
        capability = types.SamplingCapability(
            context=types.SamplingContextCapability(), tools=types.SamplingToolsCapability()
        )
        return Client(
            server,
            mode=mode,
            client_info=ME,
            elicitation_callback=self._elicited,
            sampling_callback=self._sampled,
            sampling_capabilities=capability,
            list_roots_callback=self._roots,
            logging_callback=self._logged,
            log_level="debug",
            message_handler=self._heard,
        )

    async def _elicited(
        self, context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        self._asked.append(plain(params))
        if isinstance(params, types.ElicitRequestURLParams):
            return types.ElicitResult(action="accept")
        names = params.requested_schema["properties"]
        return types.ElicitResult(action="accept", content={name: f"my {name}" for name in names})

    async def _sampled(
        self, context: ClientRequestContext, params: types.CreateMessageRequestParams
    ) -> types.CreateMessageResult | types.CreateMessageResultWithTools:
        self._asked.append(plain(params))
        if params.tools is None:
            image = types.ImageContent(type="image", data=PNG, mime_type="image/png")
            said = types.TextContent(type="text", text="forty-two")
            content = image if params.max_tokens == 50 else said
            return types.CreateMessageResult(role="assistant", content=content, model="a-model")
        return types.CreateMessageResultWithTools(
            role="assistant",
            content=[
                types.TextContent(type="text", text="Let me see."),
                types.ToolUseContent(id="use-2", name="weather", input={"city": "Zürich"}),
            ],
            model="a-model",
            stop_reason="toolUse",
        )

    async def _roots(self, context: ClientRequestContext) -> types.ListRootsResult:
        self._asked.append("roots")
        return types.ListRootsResult(roots=[types.Root(uri=FileUrl("file:///work"), name="work")])

    async def _logged(self, params: types.LoggingMessageNotificationParams) -> None:
        self._told.append(plain(params))

    async def _heard(self, message: IncomingMessage) -> None:
        if isinstance(message, Exception):
            raise message
        # The ones that came with a call; these two have a callback besides.
        if message.method not in ("notifications/message", "notifications/progress"):
            self._told.append(plain(message))

    async def progressed(self, progress: float, total: float | None, message: str | None) -> None:
        self._told.append([progress, total, message])

    async def see(self, request: Awaitable[BaseModel]) -> Json:
        """Return what was asked and told during a request, and what it got."""
        with anyio.fail_after(PATIENCE):
            try:
                got = plain(await request)
            except MCPError as error:
                got = plain(error.error)
        asked, self._asked = self._asked, []
        told, self._told = self._told, []
        return {"asked": sorted(asked, key=json.dumps), "told": told, "got": got}


# -- one request after the other -------------------------------------------------------------------

CALLS: Final[Mapping[str, Json]] = {
    "test_client_info": {},
    "test_simple_text": {},
    "test_image_content": {},
    "test_audio_content": {},
    "test_embedded_resource": {},
    "test_multiple_content_types": {},
    "test_error_handling": {},
    "no_such_tool": {},
    "json_schema_2020_12_tool": {"name": "ä\u2028", "email": "a@example.com"},
    "test_header_argument": {"region": "somewhere"},
    "test_tool_with_logging": {},
    "test_tool_with_progress": {},
    "test_elicitation": {"message": 'Who?\n"\u2028\U0001f600'},
    "test_elicitation_sep1034_defaults": {},
    "test_elicitation_sep1330_enums": {},
    "test_elicitation_url": {"elicitationId": "a-visit"},
    "test_elicitation_url_required": {"elicitationId": "a-visit"},
    "test_sampling": {"prompt": "What?"},
    "test_sampling_with_tools": {},
    "test_list_roots": {},
    "test_input_required_result_multiple_inputs": {},
    "test_input_required_result_multi_round": {},
    "test_streaming_elicitation": {},
}

Request: TypeAlias = Callable[[Client], Awaitable[BaseModel]]

REQUESTS: Final[Mapping[str, Request]] = {
    "prompt": lambda client: client.get_prompt(
        "test_prompt_with_arguments", {"arg1": "a", "arg2": "é"}
    ),
    "prompt with image": lambda client: client.get_prompt("test_prompt_with_image"),
    "prompt that asks": lambda client: client.get_prompt("test_input_required_result_prompt"),
    "no prompt": lambda client: client.get_prompt("no_such_prompt"),
    "text": lambda client: client.read_resource("test://static-text"),
    "image": lambda client: client.read_resource("test://static-binary"),
    "template": lambda client: client.read_resource("test://template/7/data"),
    "no resource": lambda client: client.read_resource("test://no-such-resource"),
    "completion": lambda client: client.complete(
        types.PromptReference(type="ref/prompt", name="test_prompt_with_arguments"),
        {"name": "arg1", "value": "par"},
    ),
    "tools": lambda client: client.list_tools(),
    "prompts": lambda client: client.list_prompts(),
    "resources": lambda client: client.list_resources(),
    "templates": lambda client: client.list_resource_templates(),
}


async def tour(server: str | StdioServerParameters, mode: str) -> Json:
    """Return all that a client sees who asks for everything once."""
    visitor = Visitor()
    async with visitor.client(server, mode) as client:
        if mode == "legacy":
            await client.set_logging_level("debug")  # pyright: ignore[reportDeprecated] - of this era
        assert client.server_info is not None
        seen: Json = {
            "server": plain(client.server_info),
            "capabilities": plain(client.server_capabilities),
            "instructions": client.instructions,
        }
        for tool, arguments in CALLS.items():
            seen[tool] = await visitor.see(
                client.call_tool(tool, arguments, progress_callback=visitor.progressed)
            )
        for name, request in REQUESTS.items():
            seen[name] = await visitor.see(request(client))
    return seen


async def test_a_client_sees_what_it_would_see_of_a_server_of_its_own_era(bridge: Bridge) -> None:
    """DESIGN 5.4 and 9. What differs is named here."""
    expected = await tour(bridge.alone(), bridge.mode)
    seen = await tour(bridge.url, bridge.mode)
    differ = _of_modern_clients if bridge.modern else _of_handshake_clients
    differ(expected, seen)
    versions = [_introduction(of).pop("protocolVersion") for of in (expected, seen)]
    assert versions == (REVISIONS if bridge.modern else REVISIONS[::-1])
    assert seen == expected


REVISIONS: Final = ["2026-07-28", "2025-11-25"]


def _introduction(of: Json) -> Json:
    """Return what the server heard of the client, in whose words is another matter: taken apart."""
    (block,) = of["test_client_info"]["got"]["content"]
    block["text"] = json.loads(block["text"])
    assert block["text"]["clientInfo"] == plain(ME)
    assert block["text"]["capabilities"].keys() == {"elicitation", "sampling", "roots"}
    return block["text"]


def _of_modern_clients(expected: Json, seen: Json) -> None:
    for step in (*CALLS, *REQUESTS):
        for of in (expected, seen):
            got = of[step]["got"]
            if SESSION in got.get("_meta", {}):
                assert got["_meta"].pop(SESSION) == {"default": True, "idleTimeout": 300}
            # Lists are everybody's, and kept for a while (DESIGN 6).
            for member, key in LISTS.items():
                if member in got:
                    got[member].sort(key=itemgetter(key))
                    assert isinstance(got.pop("ttlMs"), int)
    # For a server that only says where the user is to go first, the proxy asks, again and again;
    # the error that is left has a code of this era (2026-07-28 basic#error-codes).
    visits = seen["test_elicitation_url_required"]["asked"]
    assert expected["test_elicitation_url_required"]["asked"] == []
    assert visits == [expected["test_elicitation_url"]["asked"][0]] * 9
    expected["test_elicitation_url_required"]["asked"] = visits
    expected["test_elicitation_url_required"]["got"]["code"] = types.INTERNAL_ERROR
    # A server of the modern era begins anew with each round.
    again = expected["test_streaming_elicitation"]["told"]
    expected["test_streaming_elicitation"]["told"] = again[: len(again) // 2]


LISTS: Final = {"tools": "name", "prompts": "name", "resources": "uri", "resourceTemplates": "name"}


def _of_handshake_clients(expected: Json, seen: Json) -> None:
    for step in (*CALLS, *REQUESTS):
        meta = seen[step]["got"].pop("_meta", {})
        assert meta.keys() <= {SERVER_INFO}  # the server's own
    # The modern era has no ids for visits, and so no word of their end.
    for of in (expected, seen):
        (visit,) = of["test_elicitation_url"]["asked"]
        assert visit.pop("elicitationId")
    (over,) = expected["test_elicitation_url"]["told"]
    assert over["method"] == "notifications/elicitation/complete"
    expected["test_elicitation_url"]["told"] = []


async def text_of(client: Client, tool: str, **arguments: object) -> str:
    with anyio.fail_after(PATIENCE):
        result = await client.call_tool(tool, arguments)
    assert not result.is_error, result
    (block,) = result.content
    assert isinstance(block, types.TextContent)
    return block.text


# -- several at once -------------------------------------------------------------------------------


async def test_overlapping_calls_are_each_asked_their_own_question(bridge: Bridge) -> None:
    """DESIGN 8 and 9: several at once in one session, all of them asked before one is answered, and
    ordinary calls meanwhile; and the second time too."""
    crowd = 6
    everybody: dict[int, anyio.Event] = {1: anyio.Event(), 2: anyio.Event()}
    asked: dict[int, set[str]] = {1: set(), 2: set()}

    async def elicited(
        context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        turn = int(params.message[0])
        asked[turn].add(params.message)
        if len(asked[turn]) == crowd:
            everybody[turn].set()
        await everybody[turn].wait()
        return types.ElicitResult(
            action="accept", content={"username": params.message, "email": "e"}
        )

    async with Client(bridge.url, mode=bridge.mode, elicitation_callback=elicited) as client:

        async def ask(message: str) -> None:
            answer = await text_of(client, "test_elicitation", message=message)
            assert f'"username": "{message}"' in answer

        async def go_on(turn: int) -> None:
            while not everybody[turn].is_set():
                assert await text_of(client, "test_header_argument", region="x") == "region=x"

        for turn in (1, 2):
            async with anyio.create_task_group() as tasks:
                for number in range(crowd):
                    tasks.start_soon(ask, f"{turn}: {number}")
                tasks.start_soon(go_on, turn)


# -- cancelling ------------------------------------------------------------------------------------


async def test_a_cancelled_call_is_cancelled_at_the_server(bridge: Bridge) -> None:
    """DESIGN 5.9: what the modern client does is hang up; what the handshake one does is say so."""
    async with Client(bridge.url, mode=bridge.mode) as client:
        with anyio.fail_after(PATIENCE), anyio.CancelScope() as scope:

            async def progressed(progress: float, total: float | None, message: str | None) -> None:
                scope.cancel()

            await client.call_tool("test_wait", progress_callback=progressed)
        assert scope.cancelled_caught
        assert await text_of(client, "test_cancelled") == "It was cancelled."


# -- changes ---------------------------------------------------------------------------------------

OTHER: Final = "test://static-text"


async def test_a_modern_client_hears_what_a_handshake_server_says_of_changes(
    before_handshake: Proxy,
) -> None:
    """2026-07-28 basic/patterns/subscriptions: of lists by way of the catalogue, of resources those
    that it named."""
    async with (
        Client(before_handshake.url) as client,
        client.listen(
            tools_list_changed=True,
            prompts_list_changed=True,
            resources_list_changed=True,
            resource_subscriptions=[WATCHED],
        ) as stream,
    ):
        await text_of(client, "test_trigger_resource_updated", uri=OTHER)
        told = await text_of(client, "test_trigger_resource_updated", uri=WATCHED)
        assert told == "revision 2, subscribed"
        with anyio.fail_after(PATIENCE):
            assert await anext(stream) == ResourceUpdated(uri=WATCHED)
        for kind, event in CHANGES.items():
            await text_of(client, "test_trigger_list_changed", kind=kind)
            with anyio.fail_after(PATIENCE):
                assert await anext(stream) == event


CHANGES: Final[Mapping[str, ServerEvent]] = {
    "tools": ToolsListChanged(),
    "prompts": PromptsListChanged(),
    "resources": ResourcesListChanged(),
}


async def test_a_handshake_client_hears_what_a_modern_server_says_of_changes(
    before_modern: Proxy,
) -> None:
    """2025-11-25 server/resources#subscriptions, and #list-changed-notification of each list."""
    send, heard = anyio.create_memory_object_stream[Json](100)

    async def hear(message: IncomingMessage) -> None:
        if isinstance(message, Exception):
            raise message
        await send.send(plain(message))

    async def next_one() -> Json:
        with anyio.fail_after(PATIENCE):
            return await heard.receive()

    def updated(uri: str) -> Json:
        return {"method": "notifications/resources/updated", "params": {"uri": uri}}

    async with (
        send,
        heard,
        Client(before_modern.url, mode="legacy", message_handler=hear) as client,
    ):
        await client.subscribe_resource(WATCHED)  # pyright: ignore[reportDeprecated] - of this era
        await text_of(client, "test_trigger_resource_updated", uri=OTHER)
        await text_of(client, "test_trigger_resource_updated", uri=WATCHED)
        assert await next_one() == updated(WATCHED)
        for kind in CHANGES:
            before = plain(await LISTINGS[kind](client))
            await text_of(client, "test_trigger_list_changed", kind=kind)
            assert (await next_one())["method"] == f"notifications/{kind}/list_changed"
            after = plain(await LISTINGS[kind](client))
            assert len(after[kind]) == len(before[kind]) + 1
        await client.subscribe_resource(OTHER)  # pyright: ignore[reportDeprecated] - of this era
        await client.unsubscribe_resource(WATCHED)  # pyright: ignore[reportDeprecated] - as above
        await text_of(client, "test_trigger_resource_updated", uri=WATCHED)
        await text_of(client, "test_trigger_resource_updated", uri=OTHER)
        assert await next_one() == updated(OTHER)


LISTINGS: Final[Mapping[str, Request]] = {
    "tools": lambda client: client.list_tools(),
    "prompts": lambda client: client.list_prompts(),
    "resources": lambda client: client.list_resources(),
}


# -- parked calls ----------------------------------------------------------------------------------

FORM: Final[Json] = {
    "method": "elicitation/create",
    "params": {"message": "Who?", "requestedSchema": {"type": "object", "properties": {}}},
}


class Parked:
    """A call that waits at its backend, over HTTP, for what its client has been asked."""

    def __init__(self, proxy: Embedded, client: Modern, params: Json, result: Json) -> None:
        self.proxy = proxy
        self.client = client
        self._params = params
        self._state = result["requestState"]
        ((self._key, self.question),) = result["inputRequests"].items()

    def retry(self, action: str = "accept", **changed: object) -> Json:
        """Return what the client comes back with. `changed`: members that it should not change."""
        answers: Json = {self._key: {"action": action, "content": {}}}
        return {
            **self._params,
            "requestState": self._state,
            "inputResponses": answers,
            **changed,
        }

    async def send(self, params: Json, client: Modern | None = None) -> httpx2.Response:
        return await (client or self.client).post("tools/call", params)

    async def result(self, params: Json) -> Json:
        answer = await self.send(params)
        assert answer.status_code == 200, answer.text
        return answer.json()["result"]

    async def seen(self, method: str | None = None) -> list[Json]:
        """Return what the backend has received so far: the answers to its question, or messages of
        this method."""
        told = await self.client.call({"tells": "seen"})
        messages: list[Json] = told["structuredContent"]["seen"]
        return [message for message in messages if message.get("method") == method]

    async def answered(self) -> None:
        """Return once the backend has its answer."""
        with anyio.fail_after(PATIENCE):
            while not await self.seen():
                pass


@asynccontextmanager
async def parked(*then: Json) -> AsyncGenerator[Parked]:
    """A proxy with a backend that has asked, and takes these steps once it is answered."""
    async with embedded(scripted()) as proxy, http() as pool:
        client = Modern(pool, f"{proxy.url}/s/mine")
        params = calling({"ask": FORM}, *then)
        result = (await client.post("tools/call", params)).json()["result"]
        assert result["resultType"] == "input_required"
        found = Parked(proxy, client, params, result)
        assert found.question == FORM
        yield found


async def test_five_identical_retries_are_one_execution_and_so_is_a_replay() -> None:
    """DESIGN 9: the first takes the call up, the others join it or get its stored result."""
    async with parked({"wait": "release"}) as call:
        results: list[Json] = []

        async def retry() -> None:
            results.append(await call.result(call.retry()))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(retry)
            await call.answered()
            await call.client.call({"release": "release"})
        results.append(await call.result(call.retry()))
        assert results == [results[0]] * 6
        assert results[0]["resultType"] == "complete"
        (answer,) = await call.seen()
        assert answer["result"] == {"action": "accept", "content": {}}
        calls = await call.seen("tools/call")
        assert len([c for c in calls if {"ask": FORM} in c["params"]["arguments"]["steps"]]) == 1


async def test_a_retry_that_is_not_the_clients_own_is_refused_and_changes_nothing() -> None:
    """DESIGN 9: altered, of another conversation, of another request, with other answers."""
    async with parked() as call:
        state = call.retry()["requestState"]
        other = Modern(call.client.http, call.client.url.replace("/mine", "/other"))
        middle = len(state) // 2
        altered = state[:middle] + ("A" if state[middle] != "A" else "B") + state[middle + 1 :]
        foreign = [
            await call.send(call.retry(requestState=altered)),
            await call.send(call.retry(arguments={"steps": []})),
            await call.send(call.retry(name="undo")),
            await call.send(call.retry(inputResponses=["accept"])),
            await call.send(call.retry(), other),
        ]
        assert [answer.status_code for answer in foreign] == [400] * 5
        assert await call.seen() == []
        assert (await call.result(call.retry()))["resultType"] == "complete"
        assert (await call.send(call.retry("decline"))).status_code == 400
        (answer,) = await call.seen()
        assert answer["result"]["action"] == "accept"


async def test_a_call_that_nobody_comes_back_for_is_cancelled_and_says_so_to_who_is_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DESIGN 9: the backend gets `cancel` as its answer, then the cancellation."""
    monkeypatch.setattr(calls, "PARKED", 0.2)
    async with parked({"until_cancelled": None}) as call:
        await call.answered()
        (answer,) = await call.seen()
        assert answer["result"] == {"action": "cancel"}
        assert len(await call.seen("notifications/cancelled")) == 1
        assert_over(await call.result(call.retry()))


def assert_over(result: Json) -> None:
    """The result is the tool error that a late retry gets."""
    assert result["isError"]
    assert "no longer waiting" in result["content"][0]["text"]


async def test_a_retry_that_is_lost_on_its_way_has_cancelled_the_call() -> None:
    """2026-07-28 basic/transports/streamable-http: hanging up is cancelling, of a retry too; there
    is no second execution for who sends it again."""
    async with parked({"until_cancelled": None}) as call:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call.send, call.retry())
            await call.answered()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(PATIENCE):
            while not await call.seen("notifications/cancelled"):
                pass
        assert_over(await call.result(call.retry()))
        assert len(await call.seen()) == 1


async def test_a_call_whose_backend_died_while_it_waited_says_so_to_its_client() -> None:
    """DESIGN 9 and 11: nothing is executed anew, and the loss of the state is told besides."""
    async with parked() as call:
        told = await call.client.call()
        os.kill(told["structuredContent"]["pid"], signal.SIGKILL)
        await until(lambda: call.proxy.manager.admission.running == 0)
        told = await call.result(call.retry())
        assert told["isError"]
        assert "state was lost" in told["content"][0]["text"]
        assert "killed by SIGKILL" in told["content"][0]["text"]
        assert_over(await call.result(call.retry()))
        assert await call.seen() == []
        assert len(await call.seen("tools/call")) == 2  # these two looks


async def test_a_handshake_client_whose_modern_backend_dies_while_it_is_asked_is_told() -> None:
    """DESIGN 9 and 11: nothing runs at that backend while its client is asked; an answer that comes
    too late goes nowhere, and another call gets a fresh backend once the loss was told."""
    died, too_late = anyio.Event(), anyio.Event()
    async with embedded((*EVERYTHING, "--era", "modern")) as proxy:

        async def elicited(
            context: ClientRequestContext, params: types.ElicitRequestParams
        ) -> types.ElicitResult:
            for pid in proxy.processes():
                os.kill(pid, signal.SIGKILL)
            died.set()
            await too_late.wait()
            return types.ElicitResult(action="accept", content={"username": "u", "email": "e"})

        async with Client(proxy.url, mode="legacy", elicitation_callback=elicited) as client:
            with anyio.fail_after(PATIENCE):
                told = await client.call_tool("test_elicitation", {"message": "Who?"})
            assert died.is_set()
            assert told.is_error
            assert "killed by SIGKILL" in plain(told)["content"][0]["text"]
            too_late.set()
            with anyio.fail_after(PATIENCE):
                assert (await client.call_tool("test_simple_text")).is_error
            await text_of(client, "test_simple_text")
