"""The five handlers of a client: who is asked and told, and what comes of it (PARITY 39 to 45)."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import anyio
import mcp_types as types
import pytest
from mcp.server.mcpserver import Context, MCPServer
from pydantic import BaseModel, FileUrl

from sessionproxy import (
    CallNext,
    ConfigError,
    HandlerContext,
    ProxyClient,
    Request,
    Result,
    create_proxy,
    default_proxy_elicitation_handler,
    default_proxy_log_handler,
    default_proxy_progress_handler,
    default_proxy_roots_handler,
    default_proxy_sampling_handler,
)
from tests.parity.rig import fronted
from tests.parity.ways import capabilities_seen, do, form, found
from tests.rig.embedded import scripted
from tests.rig.http import Client, Incoming, Json, connect

State = dict[str, Any]

ROOTS: Final[Json] = {"method": "roots/list", "params": {"_meta": {"x-of": "roots"}}}
SAMPLING: Final[Json] = {
    "method": "sampling/createMessage",
    "params": {
        "messages": [{"role": "user", "content": {"type": "text", "text": "Say it."}}],
        "maxTokens": 10,
    },
}
FORM: Final = form()
QUESTIONS: Final = [ROOTS, SAMPLING, FORM]
TELLING: Final = [{"log": {"said": 1}}, {"progress": 2}]
"""The scripted backend logs, and reports progress."""

ANSWERS: Final[dict[str, Json]] = {
    "roots/list": {"roots": [{"uri": "file:///ann", "name": "ann"}]},
    "sampling/createMessage": {
        "role": "assistant",
        "content": {"type": "text", "text": "said"},
        "model": "a-model",
        "stopReason": "endTurn",
    },
    "elicitation/create": {"action": "accept", "content": {"name": "Ann"}},
}
"""As a client gives them."""

NAMES: Final = {
    "roots": "roots/list",
    "sampling": "sampling/createMessage",
    "elicitation": "elicitation/create",
}
"""Handlers of questions: what each is asked."""


class Own:
    """Handlers of a user's own, and what came to them."""

    def __init__(self) -> None:
        self.asked: dict[str, tuple[HandlerContext, object]] = {}
        self.told: list[object] = []

    def handlers(self, *, off: str | None = None) -> dict[str, Any]:
        """As arguments of a client; `off`: is switched off."""
        of = {
            "roots": self.roots,
            "sampling": self.sample,
            "elicitation": self.elicit,
            "log": self.log,
            "progress": self.report,
        }
        return {f"{name}_handler": None if name == off else own for name, own in of.items()}

    async def roots(self, context: HandlerContext) -> types.ListRootsResult:
        self.asked["roots/list"] = context, None
        uri = FileUrl("file:///ann")
        return types.ListRootsResult(roots=[types.Root(uri=uri, name="ann")])

    async def sample(
        self, context: HandlerContext, params: types.CreateMessageRequestParams
    ) -> types.CreateMessageResult:
        self.asked["sampling/createMessage"] = context, params.max_tokens
        said = types.TextContent(type="text", text="said")
        return types.CreateMessageResult(
            role="assistant", content=said, model="a-model", stop_reason="endTurn"
        )

    async def elicit(
        self, context: HandlerContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        self.asked["elicitation/create"] = context, params.message
        return types.ElicitResult(action="accept", content={"name": "Ann"})

    async def log(self, params: types.LoggingMessageNotificationParams) -> None:
        self.told.append(params.data)

    async def report(self, progress: float, total: float | None, message: str | None) -> None:
        self.told.append((progress, total))


# -- of the user's own -----------------------------------------------------------------------------


async def test_handlers_of_the_users_own_are_asked_and_told_and_the_server_has_their_answers(
    state: State,
) -> None:
    """PARITY 39 to 44: for code that works for nobody's request, too; the occasion is told."""
    own = Own()
    async with ProxyClient(scripted(), **own.handlers(), **state) as client:
        steps = [{"ask": QUESTIONS}, *TELLING, {"tells": "seen"}]
        facts = found(await client.call_tool("do", do(*steps)))
    assert [each["result"] for each in facts["answers"]] == list(ANSWERS.values())
    asked = {method: what for method, (_, what) in own.asked.items()}
    assert asked == {"roots/list": None, "sampling/createMessage": 10, "elicitation/create": "Who?"}
    for method, (context, _) in own.asked.items():
        assert context.exchange is not None
        assert context.exchange.method == "tools/call"
        assert dict(context.meta) == ({"x-of": "roots"} if method == "roots/list" else {})
    assert own.told == [{"said": 1}, (1, 2), (2, 2)]
    assert set(capabilities_seen(facts["seen"])) == set(NAMES)


@pytest.mark.parametrize("off", NAMES)
async def test_what_is_switched_off_is_not_declared_and_refused_and_the_others_are_answered(
    off: str, state: State
) -> None:
    """PARITY 45: a server that asks all the same gets a refusal."""
    own = Own()
    async with ProxyClient(scripted(), **own.handlers(off=off), **state) as client:
        facts = found(await client.call_tool("do", do({"ask": QUESTIONS}, {"tells": "seen"})))
    assert set(capabilities_seen(facts["seen"])) == set(NAMES) - {off}
    assert set(own.asked) == set(NAMES.values()) - {NAMES[off]}
    refusals: dict[str, object] = {
        "roots/list": {"roots": []},
        "sampling/createMessage": None,
        "elicitation/create": {"action": "decline"},
    }
    expected = {**ANSWERS, NAMES[off]: refusals[NAMES[off]]}
    assert [each.get("result") for each in facts["answers"]] == list(expected.values())


async def test_who_wants_no_news_is_told_none_and_the_server_has_nowhere_to_report_to(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    """PARITY 45: `log_handler`, `progress_handler`."""
    off: State = {"log_handler": None, "progress_handler": None}
    async with ProxyClient(scripted(), **off, **state) as client:
        facts = found(await client.call_tool("do", do(*TELLING, {"tells": "seen"})))
        (call,) = [each for each in facts["seen"] if each.get("method") == "tools/call"]
        assert "progressToken" not in call["params"].get("_meta", {})
    assert "failed" not in caplog.text


async def test_an_error_that_a_handler_returns_is_the_servers_answer(state: State) -> None:
    """PARITY 41, 42: with its code, message and data."""
    error: Json = {"code": -7, "message": "not today", "data": {"until": "monday"}}

    async def refuse(context: HandlerContext, *params: object) -> types.ErrorData:
        return types.ErrorData.model_validate(error)

    handlers: dict[str, Any] = {f"{name}_handler": refuse for name in NAMES}
    async with ProxyClient(scripted(), **handlers, **state) as client:
        facts = found(await client.call_tool("do", do({"ask": QUESTIONS})))
    assert [each["error"] for each in facts["answers"]] == [error] * 3


async def test_a_handler_that_raises_fails_what_it_was_asked_and_nothing_else(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    """PARITY 39: the call goes on, and so does the session; the reason is for the log alone. The
    same for a question that cannot be read."""

    async def fail(*anything: object) -> Any:  # noqa: ANN401 - it never returns
        raise ValueError("a secret reason")

    names = (*NAMES, "log", "progress")
    handlers: dict[str, Any] = {f"{name}_handler": fail for name in names}
    async with ProxyClient(scripted(), **handlers, **state) as client:
        first = found(await client.call_tool("do", do({"ask": QUESTIONS}, *TELLING)))
        second = found(await client.call_tool("do", do()))
    assert [each["error"]["code"] for each in first["answers"]] == [-32603] * 3
    assert "secret" not in str(first["answers"])
    assert (second["pid"], second["count"]) == (first["pid"], 2)
    for method in (*NAMES.values(), "notifications/message", "notifications/progress"):
        assert f"the handler for {method} failed" in caplog.text
    own, unreadable = Own(), {"method": "elicitation/create", "params": {"message": 7}}
    async with ProxyClient(scripted(), **own.handlers(), **state) as client:
        facts = found(await client.call_tool("do", do({"ask": [unreadable, FORM]})))
    assert ["error" in each for each in facts["answers"]] == [True, False]


# -- the default ones ------------------------------------------------------------------------------


Work = Callable[[], Awaitable[None]]


@asynccontextmanager
async def working(where: str, work: Work, state: State) -> AsyncGenerator[str]:
    """A proxy that does `work` when `do` is called: in a tool of its own, or in a hook before that
    of the server; yield its URL."""
    server: MCPServer[Any] = MCPServer("behind")
    proxy = create_proxy(server, **state)
    if where == "tool":

        @proxy.tool(name="do")
        async def own() -> str:
            """Do it."""
            await work()
            return "done"

        assert callable(own)
    else:
        server.add_tool(lambda: "done", name="do")

        async def hook(request: Request, call_next: CallNext) -> Result:
            if request.method == "tools/call":
                await work()
            return await call_next(request)

        proxy.add_hook(hook)
    async with fronted(proxy) as url:
        yield url


CALL: Final[Json] = {"name": "do", "arguments": {}, "_meta": {"progressToken": "mine"}}


async def asked_three_times(incoming: Incoming) -> dict[str, Json]:
    """Read as many questions; return them by their method."""
    return {each["method"]: each for each in [await incoming.message() for _ in QUESTIONS]}


@pytest.mark.parametrize("where", ["tool", "hook"])
async def test_the_default_ones_pass_on_to_the_client_that_a_tool_or_a_hook_works_for(
    where: str, state: State
) -> None:
    """PARITY 39: a client that is used inside of a request has that request's client in front."""
    answers: list[Json] = []

    async def work() -> None:
        async with ProxyClient(scripted(), **state) as inner:
            facts = found(await inner.call_tool("do", do({"ask": QUESTIONS}, *TELLING)))
        answers.extend(facts["answers"])

    async with working(where, work, state) as url, connect(url) as client:
        async with client.open("tools/call", CALL) as incoming:
            asked = await asked_three_times(incoming)
            for method, question in asked.items():
                await client.respond(question["id"], result=ANSWERS[method])
            *news, answer = await incoming.rest()
        assert asked["sampling/createMessage"]["params"] == SAMPLING["params"]
        assert asked["elicitation/create"]["params"].items() >= FORM["params"].items()
        assert [each["result"] for each in answers] == list(ANSWERS.values())
        logged, *reported = [each["params"] for each in news]
        assert logged["data"] == {"said": 1}
        progress = [{"progressToken": "mine", "progress": n, "total": 2} for n in (1, 2)]
        assert reported == progress
        assert answer["result"]["content"][0]["text"] == "done"


class Name(BaseModel):
    name: str


def curious() -> MCPServer[Any]:
    """A server in this process that asks for a name, once two have called it."""
    server: MCPServer[Any] = MCPServer("curious")
    calls: list[str] = []
    both = anyio.Event()

    @server.tool()
    async def ask(message: str, ctx: Context) -> str:
        calls.append(message)
        if len(calls) == 2:
            both.set()
        await both.wait()
        answer = await ctx.elicit(message, Name)
        return answer.data.name if answer.action == "accept" else answer.action

    assert callable(ask)
    return server


@pytest.mark.parametrize("where", ["tool", "hook"])
async def test_two_who_work_with_one_client_at_once_are_asked_their_own_questions(
    where: str, state: State
) -> None:
    """DESIGN 5.1, PARITY 48: the client was connected before there was a request."""
    messages = ["the first", "the second"]
    asked: dict[str, str] = {}
    answered: dict[str, object] = {}

    async def work() -> None:
        message = messages.pop()
        told = await inner.call_tool("ask", {"message": message})
        answered[message] = told.structured_content

    async def call(name: str, client: Client) -> None:
        async with client.open("tools/call", CALL) as incoming:
            question = await incoming.message()
            asked[question["params"]["message"]] = name
            result = {"action": "accept", "content": {"name": name}}
            await client.respond(question["id"], result=result)
            assert "result" in await incoming.message()

    async with ProxyClient(curious(), **state) as inner, working(where, work, state) as url:
        async with connect(url) as ann, connect(url) as bob:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call, "ann", ann)
                tasks.start_soon(call, "bob", bob)
    assert sorted(asked.values()) == ["ann", "bob"]
    assert answered == {message: {"result": name} for message, name in asked.items()}


@pytest.mark.parametrize("where", ["tool", "hook"])
async def test_a_question_that_could_be_anothers_is_refused_where_the_server_has_one_pipe(
    where: str, state: State
) -> None:
    """DESIGN 5.1, 8: on a pipe nothing says which of two calls a question belongs to; once there is
    one only, its client is asked."""
    answers: list[list[Json]] = []
    steps = [
        [{"release": "begun"}, {"wait": "both"}, {"ask": FORM}, {"release": "over"}],
        [{"wait": "begun"}, {"release": "both"}, {"wait": "over"}],
        [{"ask": FORM}],
    ]

    async def work() -> None:
        facts = found(await inner.call_tool("do", do(*steps.pop(0))))
        answers.append(facts.get("answers", []))

    async with ProxyClient(scripted(), **state) as inner, working(where, work, state) as url:
        async with connect(url) as ann, connect(url) as bob:
            first: list[Json] = []

            async def call(client: Client) -> None:
                async with client.open("tools/call", CALL) as incoming:
                    first.append(await incoming.message())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call, ann)
                tasks.start_soon(call, bob)
            assert ["result" in each for each in first] == [True, True], "nobody was asked"
            assert [["error" in each for each in some] for some in answers if some] == [[True]]
            async with ann.open("tools/call", CALL) as incoming:
                question = await incoming.message()
                assert question["method"] == FORM["method"]
                await ann.respond(question["id"], result=ANSWERS[FORM["method"]])
                assert "result" in await incoming.message()
            assert answers[-1][0]["result"] == ANSWERS[FORM["method"]]


async def test_outside_of_a_request_the_default_ones_refuse(state: State) -> None:
    """PARITY 39: nobody is there to be asked; news are nobody's."""
    context = HandlerContext(None, {})
    log = types.LoggingMessageNotificationParams(level="info", data="said")
    await default_proxy_log_handler(log)
    await default_proxy_progress_handler(1, None, None)
    sampling = types.CreateMessageRequestParams.model_validate(SAMPLING["params"])
    asking = types.ElicitRequestFormParams.model_validate(FORM["params"])
    for outcome in (
        await default_proxy_roots_handler(context),
        await default_proxy_sampling_handler(context, sampling),
        await default_proxy_elicitation_handler(context, asking),
    ):
        assert isinstance(outcome, types.ErrorData), outcome
    async with ProxyClient(scripted(), **state) as client:
        facts = found(await client.call_tool("do", do({"ask": QUESTIONS}, *TELLING)))
    assert ["error" in each for each in facts["answers"]] == [True] * 3


# -- that are none ---------------------------------------------------------------------------------


def says_so(params: object) -> None:
    """A handler that certainly is none."""


def generator(params: object) -> Any:  # noqa: ANN401 - what it is shows in its body
    yield params


class Says:
    def log(self, params: object) -> None: ...


@pytest.mark.parametrize("handler", [says_so, generator, Says().log, "print"])
def test_a_handler_that_cannot_be_awaited_is_refused_when_it_is_given(
    handler: Any,  # noqa: ANN401
) -> None:
    """DESIGN 11: rather than with every message that it would have been told."""
    for name in ("log_handler", "elicitation_handler"):
        with pytest.raises(ConfigError, match=rf"^{name}: expected a coroutine function"):
            ProxyClient(scripted(), **{name: handler})


async def test_a_function_that_returns_an_awaitable_is_a_handler(state: State) -> None:
    """`LogHandler` and its like: what they return is awaited, whatever made it."""
    own = Own()
    handlers: dict[str, Any] = own.handlers()
    for name, handler in handlers.items():
        handlers[name] = partial(handler) if name == "log_handler" else _plainly(handler)
    async with ProxyClient(scripted(), **handlers, **state) as client:
        facts = found(await client.call_tool("do", do({"ask": QUESTIONS}, *TELLING)))
    assert [each["result"] for each in facts["answers"]] == list(ANSWERS.values())
    assert own.told == [{"said": 1}, (1, 2), (2, 2)]


def _plainly(handler: Any) -> Any:  # noqa: ANN401
    def returning(*told: object) -> Any:  # noqa: ANN401
        return handler(*told)

    return returning


async def test_a_handler_that_returns_nothing_is_named_where_it_fails(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be told when it is given: the message says which, and what it should be."""

    def quiet(*told: object) -> Any:  # noqa: ANN401 - so it cannot be told
        return None

    names = ("roots", "sampling", "elicitation", "log", "progress")
    handlers: dict[str, Any] = {f"{name}_handler": quiet for name in names}
    async with ProxyClient(scripted(), **handlers, **state) as client:
        facts = found(await client.call_tool("do", do({"ask": QUESTIONS}, *TELLING)))
    assert [each["error"]["code"] for each in facts["answers"]] == [-32603] * 3
    for name in names:
        said = f"{name}_handler must be a coroutine function; it returned a NoneType"
        assert said in caplog.text
