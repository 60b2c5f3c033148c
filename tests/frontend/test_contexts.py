"""DESIGN section 8: what a backend sends belongs to a request, and runs in that request's context.

The proxy runs in the test's own loop, so that a hook can look at ContextVars; backends are real
children. A middleware puts the header `x-user` into a ContextVar, as an application would do.
"""

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

import anyio
import msgspec
import pytest

from sessionproxy.core.context import current_exchange
from sessionproxy.core.exchange import Forwarded
from sessionproxy.http.request import Receive, Scope, Send
from tests.rig.embedded import Application, embedded, until
from tests.rig.http import PATIENCE, Client, Incoming, Json, connect, http

TOGETHER: Final = 5 * PATIENCE
"""Seconds that an answer may take where fifty sessions ask at once, on a busy machine too."""

USER: ContextVar[str | None] = ContextVar("USER", default=None)
NOBODY = None


def with_user(app: Application) -> Application:
    """Middleware: the header `x-user` becomes `USER`, for as long as the request is served."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        name = headers.get(b"x-user")
        token = USER.set(name.decode() if name else NOBODY)
        try:
            await app(scope, receive, send)
        finally:
            USER.reset(token)

    return call


@dataclass
class Hook:
    """Records what it was called with, and the context it ran in."""

    calls: list[tuple[Forwarded, str | None]] = field(
        default_factory=list[tuple[Forwarded, str | None]]
    )

    def __call__(self, message: Forwarded) -> None:
        assert current_exchange.get() is message.exchange
        self.calls.append((message, USER.get()))

    def users(self, method: str, kind: str, *, to_backend: bool = False) -> list[str | None]:
        """In whose contexts it saw such messages."""
        return [
            user
            for message, user in self.calls
            if (message.method, message.kind, message.to_backend) == (method, kind, to_backend)
        ]

    def check_each(self) -> None:
        """Every message was seen in a context of its own session, and of its own call where the
        wire tells which that is."""
        for message, user in self.calls:
            named = _name_in(message)
            if named is None:
                continue
            exactly = message.method in ("notifications/progress", "tools/call")
            assert user is not None
            assert user == named if exactly else _session_of(user) == _session_of(named), message


def _name_in(message: Forwarded) -> str | None:
    """Find the name that a call put into everything it sent and had sent."""
    text = bytes(message.body or b"").decode()
    return text.split("<")[1].split(">")[0] if "<" in text else None


def _session_of(name: str) -> str:
    return name.split("/")[0]


@dataclass
class Heard:
    """What the client of one call got, by whatever stream."""

    progress: list[float] = field(default_factory=list[float])
    others: list[str] = field(default_factory=list[str])
    """Names in the requests and log messages, with their methods."""
    result: Json = field(default_factory=dict[str, object])


def steps(name: str, other: str) -> Sequence[Json]:
    """A call that elicits, samples, logs and reports progress while the other one does too."""
    mark = f"<{name}>"
    elicit: Json = {"message": mark, "requestedSchema": {"type": "object", "properties": {}}}
    sample = {"messages": [{"role": "user", "content": {"type": "text", "text": mark}}]}
    return (
        {"release": name},
        {"wait": other},
        {"progress": {"progress": 1, "message": mark}},
        {
            "ask": [
                {"method": "elicitation/create", "params": elicit},
                {"method": "sampling/createMessage", "params": {**sample, "maxTokens": 1}},
            ]
        },
        {"log": mark},
        {"progress": {"progress": 2, "message": mark}},
        {"release": f"{name} asked"},
        {"wait": f"{other} asked"},
        {"progress": {"progress": 3, "message": mark}},
    )


async def call(client: Client, name: str, other: str) -> Heard:
    """Make one such call, always with `id: 1` and the progress token 1."""
    heard = Heard()
    user = client.also(x_user=name)
    taken = steps(name, other)
    async with user.doing(*taken, _meta={"progressToken": 1}, echo=f"<{name}>") as incoming:
        async for message in incoming:
            if "method" not in message:
                assert message["id"] == 1
                heard.result = message["result"]["structuredContent"]
            elif message["method"] == "notifications/progress":
                assert message["params"]["progressToken"] == 1
                assert message["params"]["message"] == f"<{name}>"
                heard.progress.append(message["params"]["progress"])
            else:
                await take(client, message, heard)
    return heard


async def take(client: Client, message: Json, heard: Heard) -> None:
    """Note a log message or a request, and answer the latter with what it said."""
    text = msgspec.json.encode(message).decode()
    mark = text.split("<")[1].split(">")[0]
    heard.others.append(f"{message['method']} {mark}")
    if "id" in message:
        answer = await client.respond(message["id"], result={"said": mark, "model": "x"})
        assert answer.status_code == 202


async def listen(incoming: Incoming, client: Client, heard: Heard) -> None:
    """Take what comes by the standalone stream. Nothing needs to: while a call is in flight, it has
    a stream of its own. So its silence says nothing, and the calls are what is waited for."""
    incoming.patience = math.inf
    async for message in incoming:
        await take(client, message, heard)


async def converse(client: Client, name: str, *, times: int, listens: bool) -> None:
    """Overlap two calls, `times` in a row on the same backend, and check what they got."""
    nonces: set[str] = set()
    async with AsyncExitStack() as stack, anyio.create_task_group() as listening:
        standalone = Heard()
        if listens:
            stream = await stack.enter_async_context(client.listen())
            listening.start_soon(listen, stream, client, standalone)
        for n in range(times):
            one, two = f"{name}/{n}a", f"{name}/{n}b"
            found: dict[str, Heard] = {}

            async def run(mine: str, other: str, found: dict[str, Heard] = found) -> None:
                found[mine] = await call(client, mine, other)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run, one, two)
                tasks.start_soon(run, two, one)
            everywhere = Counter(standalone.others)
            for mine in (one, two):
                heard = found[mine]
                nonces.add(heard.result["nonce"])
                everywhere.update(heard.others)
                assert heard.progress == [1, 2, 3]
                assert heard.result["echo"] == f"<{mine}>"
                assert [a["result"]["said"] for a in heard.result["answers"]] == [mine, mine]
            assert everywhere == Counter(
                f"{method} {mine}"
                for method in (
                    "elicitation/create",
                    "sampling/createMessage",
                    "notifications/message",
                )
                for mine in (one, two)
            )
            standalone.others.clear()
        listening.cancel_scope.cancel()
    assert len(nonces) == 1


@pytest.mark.timeout(180)
@pytest.mark.parametrize("listens", [False, True], ids=["no GET stream", "GET stream"])
@pytest.mark.parametrize("sessions", [1, 50])
async def test_overlapping_calls_get_what_is_theirs_also_on_the_second_use_of_their_backend(
    sessions: int, listens: bool
) -> None:
    """DESIGN 8: two overlapping calls of one session elicit, sample, log and report progress.

    Progress reaches its own call; every request of the backend reaches its session once, in its
    restored context; the answer returns under its own id. All clients send `id: 1`.
    """
    hook = Hook()
    async with embedded(observers=[hook], around=with_user) as proxy:
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(connect(proxy.url, patience=TOGETHER))
                for _ in range(sessions)
            ]
            async with anyio.create_task_group() as tasks:
                for number, client in enumerate(clients):

                    async def run(client: Client = client, number: int = number) -> None:
                        await converse(client, f"s{number}", times=2, listens=listens)

                    tasks.start_soon(run)
    hook.check_each()
    asked = ("elicitation/create", "sampling/createMessage")
    for method in asked:
        assert len(hook.users(method, "request")) == 4 * sessions
        assert len(hook.users(method, "result", to_backend=True)) == 4 * sessions
    assert len(hook.users("notifications/progress", "notification")) == 12 * sessions


async def test_the_only_call_in_flight_lends_its_context_to_all_that_the_backend_sends() -> None:
    """DESIGN 8: by id, by progress token, else the only exchange in flight."""
    hook = Hook()
    async with embedded(observers=[hook], around=with_user) as proxy, connect(proxy.url) as client:
        for user in ("ann", "bob"):
            hook.calls.clear()
            steps = ({"progress": 1}, {"log": "x"}, {"ask": {"method": "roots/list"}})
            me = client.also(x_user=user)
            async with me.doing(*steps, _meta={"progressToken": "t"}) as incoming:
                ask = await incoming.until("roots/list")
                await client.also(x_user="somebody else").respond(ask["id"], result={"roots": []})
                await incoming.answer()
            assert {seen for _, seen in hook.calls} == {user}
            assert len(hook.calls) == 6


async def test_what_a_backend_sends_between_calls_runs_in_nobodys_context() -> None:
    """DESIGN 8: sessions are started in a copy of the server's context, never the opening
    request's, nor is the last request's kept."""
    hook = Hook()
    after = {"then": [{"ask": {"method": "roots/list"}}]}
    async with embedded(observers=[hook], around=with_user) as proxy:
        async with connect(proxy.url) as opener:
            client = opener.also(x_user="ann")
            async with client.listen() as stream:
                await client.do(after)
                ask = await stream.until("roots/list")
                await client.respond(ask["id"], result={"roots": []})
                await client.do({"log": "the answer has arrived"})
    assert hook.users("roots/list", "request") == [NOBODY]
    assert hook.users("roots/list", "result", to_backend=True) == [NOBODY]


async def test_a_backend_is_started_in_the_context_of_the_server() -> None:
    """DESIGN 8: never the opening request's, nor that of the one which wakes it. The client's own
    `initialize` is shown in its own."""
    hook = Hook()
    async with embedded(observers=[hook], around=with_user) as proxy, http() as pool:
        client = Client(pool, proxy.url, headers={"x-user": "ann"})
        await client.initialize()
        await client.do({"then": [{"exit": 0}]})
        await until(lambda: proxy.manager.registry.awake() == ())
        await client.also(x_user="bob").request("tools/list")
    assert hook.users("initialize", "request", to_backend=True) == ["ann", NOBODY]
    assert hook.users("initialize", "result") == ["ann", NOBODY]
    assert hook.users("tools/list", "request", to_backend=True) == ["bob"]


async def test_a_hook_that_raises_changes_nothing() -> None:
    """`Hook`: what it raises is logged and changes nothing."""

    def broken(message: Forwarded) -> None:
        raise LookupError(message.method)

    async with embedded(observers=[broken]) as proxy, connect(proxy.url) as client:
        assert (await client.do(echo="through"))["echo"] == "through"
