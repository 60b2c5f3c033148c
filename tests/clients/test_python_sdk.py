"""The current Python SDK's own client, unmodified, over HTTP through a real proxy.

Most tests run with clients told to use the handshake, and with clients left as they are, which
speak 2026-07-28 here. Those have no sessions, so a path says who they are, where that matters. Two
proxies serve them all, one for each server; no test looks at what others leave there. Neighbours:
`test_bridged` has what these clients get from servers that only know the other era.
"""

import json
import secrets
from collections.abc import Generator, Sequence
from typing import Final, NamedTuple, TypeVar

import anyio
import mcp_types as types
import pytest
from mcp import Client, MCPError
from mcp.client.session import ClientRequestContext, ElicitationFnT, IncomingMessage
from mcp.client.subscriptions import ResourceUpdated, ServerEvent, Subscription, ToolsListChanged
from pydantic import FileUrl

from tests.rig.processes import Census
from tests.rig.proxy import DEMO, EVERYTHING, Proxy, lasting, proxy

pytestmark = [
    # 2026-07-28 has dropped methods that servers and clients of the handshake era live by.
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]

VERSIONS: Final = {"legacy": "2025-11-25", "auto": "2026-07-28"}
"""What is agreed upon, by how the client is told to choose the era."""

PATIENCE: Final = 30.0
"""Seconds for anything that should happen at once, on a busy machine too."""

VARIABLES: Final = "notebook://variables"
WATCHED: Final = "test://watched-resource"

NoteT = TypeVar("NoteT", bound=types.ServerNotification)


class Clients(NamedTuple):
    """How clients of one era connect to a proxy."""

    running: Proxy
    mode: str

    @property
    def version(self) -> str:
        return VERSIONS[self.mode]

    @property
    def modern(self) -> bool:
        return self.mode == "auto"

    def url(self, name: str | None = None) -> str:
        """Return where somebody connects; `name`: who has a conversation of their own, even if
        another test calls somebody else so."""
        if not self.modern:
            return self.running.url
        own = "anybody" if name is None else f"{name}-{secrets.token_hex(4)}"
        return f"{self.running.url}/s/{own}"


@pytest.fixture(scope="module")
def before_the_demo() -> Generator[Proxy]:
    with lasting(DEMO) as found:
        yield found


@pytest.fixture(scope="module")
def before_everything() -> Generator[Proxy]:
    with lasting(EVERYTHING) as found:
        yield found


@pytest.fixture(params=list(VERSIONS))
def demo(request: pytest.FixtureRequest, before_the_demo: Proxy) -> Clients:
    return Clients(before_the_demo, str(request.param))


@pytest.fixture(params=list(VERSIONS))
def everything(request: pytest.FixtureRequest, before_everything: Proxy) -> Clients:
    return Clients(before_everything, str(request.param))


class Heard:
    """A message handler that keeps what the server said by itself."""

    def __init__(self) -> None:
        self._notes: list[types.ServerNotification] = []
        self._more = anyio.Event()

    async def __call__(self, message: IncomingMessage) -> None:
        if isinstance(message, Exception):
            raise message
        self._notes.append(message)
        self._more.set()
        self._more = anyio.Event()

    def all(self, kind: type[NoteT]) -> Sequence[NoteT]:
        return [note for note in self._notes if isinstance(note, kind)]

    async def one(self, kind: type[NoteT]) -> NoteT:
        """Return the only one of its kind, once it has come."""
        with anyio.fail_after(PATIENCE):
            while not self.all(kind):
                await self._more.wait()
        (note,) = self.all(kind)
        return note


async def call(client: Client, tool: str, **arguments: object) -> str:
    """Return the text that the tool answered."""
    with anyio.fail_after(PATIENCE):
        return text_of(await client.call_tool(tool, arguments))


def text_of(result: types.CallToolResult) -> str:
    assert not result.is_error, result
    (block,) = result.content
    assert isinstance(block, types.TextContent)
    return block.text


def answering(name: str, asked: list[str]) -> ElicitationFnT:
    """A user of this name, who notes what is asked."""

    async def elicited(
        context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content={"name": name})

    return elicited


# -- connecting ------------------------------------------------------------------------------------


async def test_what_client_and_server_say_of_themselves_reaches_the_other_side(
    everything: Clients,
) -> None:
    """DESIGN section 5, 4: capabilities, instructions and client info are passed on unchanged."""
    me = types.Implementation(name="a-client", title="A client", version="7")
    async with Client(everything.url(), mode=everything.mode, client_info=me) as client:
        assert client.protocol_version == everything.version
        assert client.server_info is not None
        assert client.server_info.name == "sessionproxy-everything"
        assert client.server_info.title == "Everything"
        assert client.instructions is not None
        assert client.instructions.startswith("Call the tools by the names")
        assert client.server_capabilities.resources is not None
        assert client.server_capabilities.resources.subscribe
        seen = json.loads(await call(client, "test_client_info"))
        assert seen["protocolVersion"] == everything.version
        assert seen["clientInfo"] == {"name": "a-client", "title": "A client", "version": "7"}


async def test_a_client_that_closes_ends_its_backend_and_no_other() -> None:
    """The client sends DELETE on closing; 2025-11-25 basic/transports#session-management."""
    async with proxy(DEMO) as running, Client(running.url, mode="legacy") as stays:
        await call(stays, "evaluate", source="x = 1")
        census = Census(running.state_dir)
        (of_the_other,) = census.look()
        async with Client(running.url, mode="legacy") as leaves:
            await call(leaves, "evaluate", source="x = 2")
            (its_own,) = census.look().keys() - {of_the_other}
        await census.gone(its_own, within=PATIENCE)
        assert census.look().keys() == {of_the_other}
        assert await call(stays, "evaluate", source="x") == "1"


async def test_clients_of_one_user_that_name_no_conversation_share_one() -> None:
    """DESIGN section 6, 6: a client of 2026-07-28 has no session to end. What it leaves is there
    for the next one of its user, and not for a client that has a session."""
    async with proxy(DEMO) as running:
        async with Client(running.url) as first, Client(running.url) as second:
            assert await call(first, "evaluate", source="x = 1") == "x = 1"
            assert await call(second, "evaluate", source="x + 1") == "2"
        async with Client(running.url) as third, Client(running.url, mode="legacy") as apart:
            assert await call(third, "evaluate", source="x + 2") == "3"
            assert (await apart.call_tool("evaluate", {"source": "x"})).is_error


# -- state -----------------------------------------------------------------------------------------


async def test_two_clients_at_once_have_a_notebook_each(demo: Clients) -> None:
    """Our reason to be: one session, one backend."""
    async with (
        Client(demo.url("alice"), mode=demo.mode) as alice,
        Client(demo.url("bob"), mode=demo.mode) as bob,
    ):
        counted: dict[str, list[str]] = {"alice": [], "bob": []}

        async def work(name: str, client: Client, by: int) -> None:
            for turn in range(20):
                await call(client, "evaluate", source=f"{name}_{turn} = {turn * by}")
                counted[name].append(await call(client, "count", by=by))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work, "alice", alice, 1)
            tasks.start_soon(work, "bob", bob, 100)

        assert counted["alice"] == [str(n) for n in range(1, 21)]
        assert counted["bob"] == [str(100 * n) for n in range(1, 21)]
        for name, client, by in (("alice", alice, 1), ("bob", bob, 100)):
            (contents,) = (await client.read_resource(VARIABLES)).contents
            assert isinstance(contents, types.TextResourceContents)
            assert json.loads(contents.text) == {f"{name}_{turn}": turn * by for turn in range(20)}


async def test_calls_of_one_client_that_overlap_each_get_their_own_answer(demo: Clients) -> None:
    """DESIGN section 5, 11: ids are renumbered, and an answer goes to the POST that asked."""
    async with Client(demo.url(), mode=demo.mode) as client:
        answers: dict[int, str] = {}

        async def ask(n: int) -> None:
            answers[n] = await call(client, "evaluate", source=f"{n} * {n}")

        async with anyio.create_task_group() as tasks:
            for n in range(50):
                tasks.start_soon(ask, n)
        assert answers == {n: str(n * n) for n in range(50)}


async def test_a_tools_own_error_arrives_as_the_result_that_it_is(everything: Clients) -> None:
    """DESIGN section 5, 4: `isError` is the backend's; a JSON-RPC error keeps code and text."""
    async with Client(everything.url(), mode=everything.mode) as client:
        result = await client.call_tool("test_error_handling")
        assert result.is_error
        (block,) = result.content
        assert isinstance(block, types.TextContent)
        assert block.text == "This tool intentionally returns an error for testing"
        with pytest.raises(MCPError) as raised:
            await client.call_tool("no_such_tool")
        assert raised.value.error.code == types.INVALID_PARAMS
        assert raised.value.error.message == "Unknown tool: no_such_tool"


# -- what the server asks --------------------------------------------------------------------------


async def test_each_of_two_users_is_asked_by_the_call_that_is_theirs(demo: Clients) -> None:
    """FastMCP's recipe let one user's form be answered by the other (DESIGN section 1)."""
    asked: dict[str, list[str]] = {"Alice": [], "Bob": []}
    greeted: dict[str, list[str]] = {"Alice": [], "Bob": []}

    def user(name: str) -> Client:
        callback = answering(name, asked[name])
        return Client(demo.url(name), mode=demo.mode, elicitation_callback=callback)

    async with user("Alice") as alice, user("Bob") as bob:

        async def greet(name: str, client: Client) -> None:
            for _ in range(5):
                greeted[name].append(await call(client, "greet"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(greet, "Alice", alice)
            tasks.start_soon(greet, "Bob", bob)
    assert asked == {"Alice": ["Who are you?"] * 5, "Bob": ["Who are you?"] * 5}
    assert greeted == {"Alice": ["Hello, Alice!"] * 5, "Bob": ["Hello, Bob!"] * 5}


async def test_two_overlapping_calls_of_one_client_are_both_asked(everything: Clients) -> None:
    """DESIGN section 8: never one slot for the current request."""
    both = anyio.Event()
    asked: list[str] = []

    async def elicited(
        context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        asked.append(params.message)
        if len(asked) == 2:
            both.set()
        await both.wait()
        return types.ElicitResult(
            action="accept", content={"username": params.message, "email": "a@example.com"}
        )

    async with Client(
        everything.url(), mode=everything.mode, elicitation_callback=elicited
    ) as client:
        answers: dict[str, str] = {}

        async def ask(message: str) -> None:
            answers[message] = await call(client, "test_elicitation", message=message)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "first")
            tasks.start_soon(ask, "second")
    assert sorted(asked) == ["first", "second"]
    for message, answer in answers.items():
        assert answer.startswith("User response: action=accept")
        assert f'"username": "{message}"' in answer


async def test_the_server_gets_the_clients_sampling_and_roots(everything: Clients) -> None:
    """2025-11-25 client/sampling and client/roots, each on the stream of the call that asks."""
    prompts: list[types.SamplingMessage] = []

    async def sampled(
        context: ClientRequestContext, params: types.CreateMessageRequestParams
    ) -> types.CreateMessageResult:
        prompts.extend(params.messages)
        content = types.TextContent(type="text", text="forty-two")
        return types.CreateMessageResult(role="assistant", content=content, model="a-model")

    async def roots(context: ClientRequestContext) -> types.ListRootsResult:
        return types.ListRootsResult(roots=[types.Root(uri=FileUrl("file:///work"), name="work")])

    async with Client(
        everything.url(),
        mode=everything.mode,
        sampling_callback=sampled,
        list_roots_callback=roots,
    ) as client:
        assert await call(client, "test_sampling", prompt="What?") == "LLM response: forty-two"
        (prompt,) = prompts
        assert isinstance(prompt.content, types.TextContent)
        assert prompt.content.text == "What?"
        listed = json.loads(await call(client, "test_list_roots"))
        assert [(root["uri"], root["name"]) for root in listed] == [("file:///work", "work")]


# -- what the server tells -------------------------------------------------------------------------


async def test_progress_and_logs_of_a_call_come_in_order_and_before_its_result(
    demo: Clients,
) -> None:
    """2025-11-25 basic/utilities/progress; the notebook logs after each step. A modern client hears
    what it asks for, with each request (2026-07-28 server/utilities/logging)."""
    told: list[object] = []

    async def progressed(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, total, message))

    async def logged(params: types.LoggingMessageNotificationParams) -> None:
        told.append(params.data)

    async with Client(
        demo.url(), mode=demo.mode, logging_callback=logged, log_level="info"
    ) as client:
        with anyio.fail_after(PATIENCE):
            result = await client.call_tool(
                "countdown", {"steps": 3, "delay": 0.01}, progress_callback=progressed
            )
        before_the_result = list(told)
        assert text_of(result) == "Lift-off."
    assert before_the_result == [
        (1, 3, "2 to go"),
        "step 1 of 3",
        (2, 3, "1 to go"),
        "step 2 of 3",
        (3, 3, "0 to go"),
        "step 3 of 3",
    ]


async def test_progress_of_two_overlapping_calls_goes_to_the_call_it_is_of(demo: Clients) -> None:
    """DESIGN section 5, 11: progress tokens are renumbered towards the backend."""
    steps: dict[int, list[tuple[float, float | None]]] = {5: [], 7: []}
    async with Client(demo.url(), mode=demo.mode) as client:

        async def count_down(of: int) -> None:
            async def progressed(progress: float, total: float | None, message: str | None) -> None:
                steps[of].append((progress, total))

            with anyio.fail_after(PATIENCE):
                arguments = {"steps": of, "delay": 0.02}
                await client.call_tool("countdown", arguments, progress_callback=progressed)

        async with anyio.create_task_group() as tasks:
            for of in steps:
                tasks.start_soon(count_down, of)
    assert steps == {of: [(n, of) for n in range(1, of + 1)] for of in (5, 7)}


async def test_the_log_level_is_each_clients_own(demo: Clients) -> None:
    """2025-11-25 server/utilities/logging: the level lives in the backend; of 2026-07-28 in each
    request, and here both clients have one conversation."""
    logs: dict[str, list[object]] = {"quiet": [], "loud": []}
    url = demo.url()

    def user(name: str, level: types.LoggingLevel) -> Client:
        async def logged(params: types.LoggingMessageNotificationParams) -> None:
            logs[name].append(params.data)

        return Client(url, mode=demo.mode, logging_callback=logged, log_level=level)

    async with user("quiet", "error") as quiet, user("loud", "info") as loud:
        if not demo.modern:
            await quiet.set_logging_level("error")  # pyright: ignore[reportDeprecated] - of this era
        for client in (quiet, loud, quiet):
            await call(client, "countdown", steps=2, delay=0)
    assert logs == {"quiet": [], "loud": ["step 1 of 2", "step 2 of 2"]}


async def test_a_subscriber_hears_of_its_own_resource_and_nobody_elses(
    before_everything: Proxy,
) -> None:
    """2025-11-25 server/resources#subscriptions. Both have one named alike, and both subscribe."""
    heard = {"alice": Heard(), "bob": Heard()}
    url = before_everything.url
    async with (
        Client(url, mode="legacy", message_handler=heard["alice"]) as alice,
        Client(url, mode="legacy", message_handler=heard["bob"]) as bob,
    ):
        await alice.subscribe_resource(WATCHED)  # pyright: ignore[reportDeprecated] - of this era
        await bob.subscribe_resource(WATCHED)  # pyright: ignore[reportDeprecated] - of this era
        told = await call(alice, "test_trigger_resource_updated", uri=WATCHED)
        assert told == "revision 1, subscribed"
        updated = await heard["alice"].one(types.ResourceUpdatedNotification)
        assert updated.params.uri == WATCHED
        # Had it gone to Bob too, then before what his own backend answers now.
        (contents,) = (await bob.read_resource(WATCHED)).contents
        assert isinstance(contents, types.TextResourceContents)
        assert contents.text == "Revision 0"
        assert heard["bob"].all(types.ResourceUpdatedNotification) == []

        await alice.unsubscribe_resource(WATCHED)  # pyright: ignore[reportDeprecated] - of this era
        told = await call(alice, "test_trigger_resource_updated", uri=WATCHED)
        assert told == "revision 2, not subscribed"
        assert len(heard["alice"].all(types.ResourceUpdatedNotification)) == 1


async def test_a_listener_hears_of_its_own_resource_and_nobody_elses(
    before_everything: Proxy,
) -> None:
    """2026-07-28 basic/patterns/subscriptions, of two conversations that both listen."""
    clients = Clients(before_everything, "auto")
    other = "test://static-text"
    async with (
        Client(clients.url("alice")) as alice,
        Client(clients.url("bob")) as bob,
        alice.listen(resource_subscriptions=[WATCHED]) as heard,
        bob.listen(resource_subscriptions=[WATCHED, other]) as heard_by_bob,
    ):
        assert heard.honored.resource_subscriptions == [WATCHED]
        await call(alice, "test_trigger_resource_updated", uri=WATCHED)
        assert await event_of(heard) == ResourceUpdated(uri=WATCHED)
        await call(bob, "test_trigger_resource_updated", uri=other)
        assert await event_of(heard_by_bob) == ResourceUpdated(uri=other)


async def event_of(subscription: Subscription) -> ServerEvent:
    """Return the next event of a stream that goes on."""
    with anyio.fail_after(PATIENCE):
        return await anext(subscription)


async def test_a_client_hears_that_a_list_of_its_own_has_changed(before_everything: Proxy) -> None:
    """2025-11-25 server/tools#list-changed-notification."""
    heard = Heard()
    url = before_everything.url
    async with (
        Client(url, mode="legacy", message_handler=heard) as client,
        Client(url, mode="legacy") as other,
    ):
        before = {tool.name for tool in (await client.list_tools()).tools}
        await call(client, "test_trigger_list_changed", kind="tools")
        await heard.one(types.ToolListChangedNotification)
        after = {tool.name for tool in (await client.list_tools()).tools}
        assert after - before == {"test_added_tool"}
        assert {tool.name for tool in (await other.list_tools()).tools} == before


async def test_listeners_of_all_conversations_hear_that_a_list_has_changed(
    before_everything: Proxy,
) -> None:
    """DESIGN sections 6 and 9: lists must not vary with the connection, so what one backend says of
    its own makes the catalogue fetch anew, and those who listen hear of that."""
    clients = Clients(before_everything, "auto")
    async with (
        Client(clients.url("alice")) as alice,
        Client(clients.url("bob")) as bob,
        alice.listen(tools_list_changed=True) as heard,
        bob.listen(tools_list_changed=True) as heard_by_bob,
    ):
        before = [tool.name for tool in (await bob.list_tools()).tools]
        await call(alice, "test_trigger_list_changed", kind="tools")
        for subscription in (heard, heard_by_bob):
            assert await event_of(subscription) == ToolsListChanged()
        for client in (alice, bob):
            assert [tool.name for tool in (await client.list_tools()).tools] == before


# -- prompts, resources, completions ---------------------------------------------------------------


async def test_prompts_resources_templates_and_completions_are_the_servers(
    everything: Clients,
) -> None:
    """2025-11-25 server/prompts, server/resources, server/utilities/completion. Of lists that are
    everybody's the order is ours (DESIGN section 6)."""
    async with Client(everything.url(), mode=everything.mode) as client:
        prompts = [prompt.name for prompt in (await client.list_prompts()).prompts]
        assert "test_prompt_with_arguments" in prompts
        prompt = await client.get_prompt("test_prompt_with_arguments", {"arg1": "a", "arg2": "é"})
        (message,) = prompt.messages
        assert isinstance(message.content, types.TextContent)
        assert message.content.text == "Prompt with arguments: arg1='a', arg2='é'"

        resources = [resource.uri for resource in (await client.list_resources()).resources]
        theirs = ["test://static-text", "test://static-binary", WATCHED]
        assert resources == (sorted(theirs) if everything.modern else theirs)
        (template,) = (await client.list_resource_templates()).resource_templates
        assert template.uri_template == "test://template/{id}/data"
        (record,) = (await client.read_resource("test://template/7/data")).contents
        assert isinstance(record, types.TextResourceContents)
        assert json.loads(record.text)["id"] == "7"
        (binary,) = (await client.read_resource("test://static-binary")).contents
        assert isinstance(binary, types.BlobResourceContents)

        reference = types.PromptReference(type="ref/prompt", name="test_prompt_with_arguments")
        argument = {"name": "arg1", "value": "par"}
        assert (await client.complete(reference, argument)).completion.values == [
            "paris",
            "park",
            "party",
        ]


async def test_a_call_that_times_out_at_the_client_leaves_the_session_as_it_was(
    demo: Clients,
) -> None:
    """2025-11-25 basic/lifecycle#timeouts: the client cancels; state and order stay."""
    async with Client(demo.url(), mode=demo.mode) as client:
        await call(client, "evaluate", source="x = 1")
        with pytest.raises(MCPError):
            await client.call_tool("countdown", {"steps": 1000, "delay": 1}, 0.2)
        assert await call(client, "evaluate", source="x + 1") == "2"
