"""Spans: PARITY rows 31 and 78 (what `--tracing on` makes of requests).

The names are those of OpenTelemetry's conventions for MCP. Real sockets and real backends; the
spans are those that the SDK of OpenTelemetry exports.
"""

import anyio
import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from sessionproxy.app import http_app
from sessionproxy.config import ConfigError
from sessionproxy.core.binding import SessionIds
from sessionproxy.core.exchange import Exchange, Forwarded, Outcome
from sessionproxy.core.manager import Limits, SessionManager
from sessionproxy.http.request import Receive, Scope, Send
from sessionproxy.ops.tracing import Tracing
from tests.core.fakes import KEY, OPENING, FakeClient, FakeLauncher, FakeSink, opened
from tests.ops.spans import Spans, is_child, told, use
from tests.rig.embedded import Application, Embedded, embedded, scripted, session, until
from tests.rig.http import Client, Json, calling, connect, http
from tests.rig.modern import Modern, listing, naming
from tests.rig.piped import piped
from tests.rig.upstream import fronting, upstream

ON = "on"
TRACE_A = "0" * 31 + "a"
TRACE_B = "0" * 31 + "b"
CALL = "tools/call do"


def carrying(trace_id: str, span_id: str = "00000000000000cc") -> str:
    """A `traceparent` (W3C Trace Context)."""
    return f"00-{trace_id}-{span_id}-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    return use(monkeypatch)


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def label(proxy: Embedded) -> str:
    (only,) = proxy.manager.registry.awake()
    return only.label


# -- what there is ---------------------------------------------------------------------------------


async def test_a_call_is_a_span_served_and_one_asked(spans: Spans, both_ways: None) -> None:
    """Row 78: a server span per request, a client span per operation at the backend."""
    async with session(tracing=ON) as (proxy, client):
        for number in range(3):
            await client.do(number=number)
        name = label(proxy)
    assert len(spans.some(SpanKind.SERVER, CALL)) == len(spans.some(SpanKind.CLIENT, CALL)) == 3
    last_served, last_asked = (spans.some(k, CALL)[-1] for k in (SpanKind.SERVER, SpanKind.CLIENT))
    assert is_child(last_asked, of=last_served)
    common = {
        "mcp.method.name": "tools/call",
        "mcp.session.id": name,
        "mcp.protocol.version": "2025-11-25",
        "gen_ai.tool.name": "do",
        "gen_ai.operation.name": "execute_tool",
        "sessionproxy.server": "default",
    }
    assert told(last_served) == {**common, "jsonrpc.request.id": "2"}
    assert told(last_asked) == {
        **common,
        "jsonrpc.request.id": "4",  # our own: after `initialize` and two calls
        "network.transport": "pipe",
        "sessionproxy.provider.type": "stdio",
        "sessionproxy.backend.name": "do",
    }
    assert last_served.status.status_code is last_asked.status.status_code is StatusCode.UNSET


async def test_opening_a_session_is_a_request_too_and_waking_it_is_none(spans: Spans) -> None:
    """Only what a client asked is served: what the proxy asks on its own account is not."""
    async with session(tracing=ON) as (proxy, client):
        await client.request("tools/call", calling({"exit": 0}))
        await until(lambda: not proxy.manager.registry.awake())
        await client.request("tools/list")
    assert is_child(spans.some(SpanKind.CLIENT, "initialize")[0], of=spans.served("initialize"))
    first, again = spans.some(SpanKind.CLIENT, "initialize")
    assert again.parent is None
    assert told(first)["mcp.session.id"] == told(again)["mcp.session.id"]


@pytest.mark.parametrize(
    ("method", "params", "name", "attributes"),
    [
        (
            "resources/read",
            {"uri": "file:///a?b=c"},
            "resources/read",
            {"mcp.resource.uri": "file:///a?b=c", "sessionproxy.backend.uri": "file:///a?b=c"},
        ),
        (
            "prompts/get",
            {"name": "greet"},
            "prompts/get greet",
            {"gen_ai.prompt.name": "greet", "sessionproxy.backend.name": "greet"},
        ),
        (
            "completion/complete",
            {"ref": {"type": "ref/resource", "uri": "file:///{x}"}, "argument": {}},
            "completion/complete",
            {"sessionproxy.backend.uri_template": "file:///{x}"},
        ),
        (
            "completion/complete",
            {"ref": {"type": "ref/prompt", "name": "greet"}, "argument": {}},
            "completion/complete greet",
            {"gen_ai.prompt.name": "greet", "sessionproxy.backend.name": "greet"},
        ),
        ("tools/call", {"name": 7, "arguments": {}}, "tools/call", {}),
        ("x/made-up", {"name": "x"}, "x/made-up", {}),
    ],
)
async def test_what_a_request_is_about_is_told_as_the_backend_calls_it(
    spans: Spans, method: str, params: Json, name: str, attributes: dict[str, str]
) -> None:
    """Row 31: `backend_name`, `backend_uri`, `backend_uri_template`."""
    async with session(tracing=ON) as (_, client):
        await client.request(method, params)
    ours = (
        "gen_ai.tool.name",
        "gen_ai.prompt.name",
        "mcp.resource.uri",
        "sessionproxy.backend.name",
        "sessionproxy.backend.uri",
        "sessionproxy.backend.uri_template",
    )
    found = {key: value for key, value in told(spans.asked(name)).items() if key in ours}
    assert found == attributes
    served = {key for key in told(spans.served(name)) if key in ours}
    assert served == {key for key in attributes if not key.startswith("sessionproxy.")}


async def test_no_secret_is_in_a_span(spans: Spans) -> None:
    """DESIGN 5.8: the id of a session is its client's; arguments and results are nobody else's."""
    async with session(tracing=ON) as (_, client):
        await client.do(echo="the-argument")
        async with http() as pool:
            await Modern(pool, f"{client.url}/s/the-key").call(echo="the-argument")
        text = "".join(span.to_json() for span in spans.all())
        for secret in (client.id, "the-argument", "the-key"):
            assert secret not in text
    assert "tools/call do" in text


async def test_without_tracing_nothing_is_made(spans: Spans) -> None:
    async with session() as (_, client):
        await client.do()
    assert spans.all() == ()


def test_the_setting_is_on_or_off() -> None:
    with pytest.raises(ConfigError, match="tracing: "):
        http_app(scripted(), tracing="perhaps")  # pyright: ignore[reportArgumentType]


# -- whose they are --------------------------------------------------------------------------------


async def test_what_the_clients_meta_carries_is_continued(spans: Spans, both_ways: None) -> None:
    """SEP-414: `_meta.traceparent` is the parent."""
    async with session(tracing=ON) as (_, client):
        for trace_id in (TRACE_A, TRACE_B):
            await client.do(_meta={"traceparent": carrying(trace_id), "tracestate": "v=1"})
    one, other = spans.some(SpanKind.SERVER, CALL)
    assert (trace_of(one), trace_of(other)) == (TRACE_A, TRACE_B)
    assert one.parent is not None
    assert one.parent.is_remote
    assert one.parent.span_id == 0xCC
    assert one.context is not None
    assert one.context.trace_state.get("v") == "1"
    assert [trace_of(span) for span in spans.some(SpanKind.CLIENT, CALL)] == [TRACE_A, TRACE_B]


async def test_else_what_the_http_request_carries_is(spans: Spans, both_ways: None) -> None:
    """Also where heads differ in nothing else, and where one without it has been vouched for."""
    async with session(tracing=ON) as (_, client):
        for _ in range(2):
            await client.do()
        for trace_id in (TRACE_A, TRACE_B, TRACE_B):
            await client.also(traceparent=carrying(trace_id)).do()
        await client.do()
    found = [trace_of(span) for span in spans.some(SpanKind.SERVER, CALL)]
    assert found[2:5] == [TRACE_A, TRACE_B, TRACE_B]
    assert len({*found}) == 5
    assert [s.parent is None for s in spans.some(SpanKind.SERVER, CALL)] == [
        True, True, False, False, False, True,
    ]  # fmt: skip


async def test_where_both_carry_one_the_other_is_linked(spans: Spans) -> None:
    """Conventions for MCP, context propagation: the transport's context is another one."""
    async with session(tracing=ON) as (_, client):
        other = client.also(traceparent=carrying(TRACE_B))
        await other.do(_meta={"traceparent": carrying(TRACE_A)})
        same = client.also(traceparent=carrying(TRACE_A))
        await same.do(_meta={"traceparent": carrying(TRACE_A)})
    linked, alone = spans.some(SpanKind.SERVER, CALL)
    assert trace_of(linked) == trace_of(alone) == TRACE_A
    assert [f"{link.context.trace_id:032x}" for link in linked.links] == [TRACE_B]
    assert not alone.links


@pytest.mark.parametrize("value", [7, "", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
async def test_what_carries_no_trace_is_ignored(spans: Spans, value: object) -> None:
    async with session(tracing=ON) as (_, client):
        await client.also(traceparent="nonsense").do(_meta={"traceparent": value})
    assert spans.served(CALL).parent is None


async def test_a_span_of_the_application_around_it_is_the_parent(spans: Spans) -> None:
    """An application that embeds the proxy may trace its HTTP requests itself."""

    def traced(app: Application) -> Application:
        tracer = spans.provider.get_tracer("around")

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            with tracer.start_as_current_span("around"):
                await app(scope, receive, send)

        return call

    async with embedded(around=traced, tracing=ON) as proxy, connect(proxy.url) as client:
        await client.also(traceparent=carrying(TRACE_A)).do()
    served = spans.served(CALL)
    around = [span for span in spans.all() if span.name == "around"]
    assert any(is_child(served, of=span) for span in around)


async def test_the_backend_gets_the_clients_meta_as_it_is(spans: Spans) -> None:
    """DESIGN 5.4: what a session sees is what the other side sent; so the backend's own spans are
    the client's children, beside ours."""
    meta = {"traceparent": carrying(TRACE_A), "tracestate": "v=1", "x": [1]}
    async with session(tracing=ON) as (_, client):
        answer = await client.request("x/echo", {"_meta": meta})
    assert answer["result"]["params"] == {"_meta": meta}
    assert trace_of(spans.served("x/echo")) == TRACE_A


async def test_overlapping_calls_have_their_own(spans: Spans) -> None:
    """DESIGN 8: never one slot for the current request."""
    async with session(tracing=ON) as (_, client), anyio.create_task_group() as tasks:

        async def call(trace_id: str, *steps: Json) -> None:
            await client.do(*steps, _meta={"traceparent": carrying(trace_id)})

        tasks.start_soon(call, TRACE_A, {"release": "a"}, {"wait": "b"})
        tasks.start_soon(call, TRACE_B, {"release": "b"}, {"wait": "a"})
    served = {trace_of(span): span for span in spans.some(SpanKind.SERVER, CALL)}
    assert set(served) == {TRACE_A, TRACE_B}
    for asked in spans.some(SpanKind.CLIENT, CALL):
        assert is_child(asked, of=served[trace_of(asked)])


# -- how they end ----------------------------------------------------------------------------------


async def test_an_error_of_the_backend_is_told_by_its_code(spans: Spans) -> None:
    error = {"code": -32042, "message": "go away", "data": "secret"}
    async with session(tracing=ON) as (_, client):
        await client.request("tools/call", calling({"replies": {"error": error}}))
    for span in (spans.served(CALL), spans.asked(CALL)):
        assert told(span)["error.type"] == told(span)["rpc.response.status_code"] == "-32042"
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "go away")


async def test_a_result_that_is_an_error_is_one(spans: Spans) -> None:
    """Conventions for MCP: `tool_error`; seen by no status of HTTP and no code of JSON-RPC."""
    wrong: Json = {"content": [], "isError": True}
    right: Json = {"content": [{"type": "text", "text": '"isError":true'}], "isError": False}
    async with session(tracing=ON) as (_, client):
        for result in (wrong, right):
            await client.request("tools/call", calling({"replies": {"result": result}}))
        await client.request("x/y", {"_meta": {"steps": [{"replies": {"result": wrong}}]}})
    bad, good = spans.some(SpanKind.SERVER, CALL)
    assert (told(bad)["error.type"], bad.status.status_code) == ("tool_error", StatusCode.ERROR)
    assert "error.type" not in told(good)
    assert "error.type" not in told(spans.served("x/y")), "only tools have such results"


def fails_with(reason: str, *found: ReadableSpan) -> None:
    for span in found:
        assert told(span)["error.type"] == reason
        assert span.status.status_code is StatusCode.ERROR


async def test_a_call_that_its_backend_dies_over_ends_its_spans(spans: Spans) -> None:
    """No answer comes, so no hook sees one: they end when the exchange is settled."""
    async with session(tracing=ON) as (_, client):
        await client.request("tools/call", calling({"kill": "SIGKILL"}))
    fails_with("backend_gone", spans.served(CALL), spans.asked(CALL))
    assert "SIGKILL" in str(spans.served(CALL).status.description)


async def test_a_call_that_is_cancelled_ends_its_spans(spans: Spans) -> None:
    async with session(tracing=ON) as (_, client):
        async with client.doing({"log": 1}, {"until_cancelled": 1}, number=9) as incoming:
            await incoming.until("notifications/message")
            await client.notify("notifications/cancelled", {"requestId": 9})
            await spans.until(lambda: bool(spans.some(SpanKind.SERVER, CALL)))
    fails_with("request_cancelled", spans.served(CALL), spans.asked(CALL))


async def test_a_call_that_takes_too_long_ends_its_spans(spans: Spans) -> None:
    async with session(tracing=ON, call_timeout=0.2) as (_, client):
        await client.request("tools/call", calling({"until_cancelled": 1}))
    fails_with("backend_silent", spans.served(CALL), spans.asked(CALL))


async def test_a_session_that_ends_ends_the_spans_of_its_calls(spans: Spans) -> None:
    async with session(tracing=ON) as (_, client):
        async with client.doing({"log": 1}, {"until_cancelled": 1}) as incoming:
            await incoming.until("notifications/message")
            await client.delete()
            await spans.until(lambda: bool(spans.some(SpanKind.SERVER, CALL)))
    fails_with("session_ended", spans.served(CALL), spans.asked(CALL))


@pytest.mark.parametrize("steps", [[{"exit": 3}], [{"wait": "never"}]], ids=["exits", "waits"])
async def test_a_start_that_fails_ends_its_spans(spans: Spans, steps: list[Json]) -> None:
    script = scripted(initialize=steps)
    async with embedded(script, tracing=ON, start_timeout=1) as proxy, http() as pool:
        await Client(pool, proxy.url).initialize()
    assert told(spans.served("initialize"))["error.type"] == "backend_gone"
    assert told(spans.asked("initialize"))["error.type"] == "backend_gone"


class Broken(SpanProcessor):
    """What exports spans, and fails."""

    def __init__(self, when: str) -> None:
        self._when = when
        self.failures: list[str] = []

    def _fail(self, what: str) -> None:
        if what == self._when:
            self.failures.append(what)
            raise RuntimeError(what)

    def on_start(self, span: Span, parent_context: context.Context | None = None) -> None:
        self._fail("start")

    def on_end(self, span: ReadableSpan) -> None:
        self._fail("end")


@pytest.mark.parametrize("when", ["start", "end"])
async def test_an_exporter_that_fails_stops_no_answer(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Neither a session nor a call may depend on it (DESIGN 5.3)."""
    broken = Broken(when)
    use(monkeypatch, broken)
    async with session(tracing=ON) as (_, client):
        assert (await client.do())["count"] == 1
    assert broken.failures == [when] * 4, "two of `initialize`, two of the call"


# -- eras, and other kinds of backends -------------------------------------------------------------


async def test_a_modern_clients_first_call_spans_the_start_of_its_backend(spans: Spans) -> None:
    """It waits for it; so the span begins when the request came in, not when it was passed on."""
    async with embedded(scripted(**listing(naming("do", {}))), tracing=ON) as proxy, http() as pool:
        await Modern(pool, f"{proxy.url}/s/mine").call()
        name = label(proxy)
    served, asked = spans.served(CALL), spans.asked(CALL)
    assert is_child(asked, of=served)
    assert told(served)["mcp.protocol.version"] == "2026-07-28"
    assert told(served)["mcp.session.id"] == told(asked)["mcp.session.id"] == name
    starts = [s for s in spans.some(SpanKind.CLIENT, "initialize") if "mcp.session.id" in told(s)]
    assert len(starts) == 1
    assert served.start_time is not None
    assert starts[0].start_time is not None
    assert served.start_time < starts[0].start_time
    assert not spans.some(SpanKind.SERVER, "initialize")
    assert not spans.some(SpanKind.SERVER, "server/discover"), "no client has asked that"


async def test_each_round_of_a_modern_call_is_served_and_the_backend_asked_once(
    spans: Spans,
) -> None:
    """2026-07-28 basic/patterns/mrtr: a handshake backend works on while the client is away."""
    form: Json = {"message": "?", "requestedSchema": {"type": "object", "properties": {}}}
    ask: Json = {"ask": {"method": "elicitation/create", "params": form}}
    async with embedded(scripted(**listing(naming("do", {}))), tracing=ON) as proxy, http() as pool:
        modern = Modern(pool, f"{proxy.url}/s/mine")
        first = await modern.call(ask)
        assert first["resultType"] == "input_required"
        answers = {key: {"action": "decline"} for key in first["inputRequests"]}
        state = first["requestState"]
        await modern.call(ask, inputResponses=answers, requestState=state)
    served = spans.some(SpanKind.SERVER, CALL)
    assert len(served) == 2
    assert is_child(spans.asked(CALL), of=served[0])


async def test_a_handshake_clients_call_of_a_modern_backend(spans: Spans) -> None:
    """The backend is asked in its own era, on behalf of the same span."""
    async with (
        upstream(modern=True, handshake=False) as server,
        fronting(server.url, {"tracing": ON}) as proxy,
        connect(proxy.url) as client,
    ):
        await client.request("tools/call", {"name": "do", "arguments": {}})
    served, asked = spans.served(CALL), spans.asked(CALL)
    assert is_child(asked, of=served)
    assert told(served)["mcp.protocol.version"] == "2025-11-25"
    assert told(asked)["mcp.protocol.version"] == "2026-07-28"
    assert told(asked)["sessionproxy.provider.type"] == "http"
    assert told(asked)["network.transport"] == "tcp"


async def test_a_client_on_stdin_and_stdout_is_served_likewise(spans: Spans) -> None:
    """Of either era, and without a header to carry a trace."""
    async with piped(tracing=ON) as client:
        await client.initialize()
        await client.request(
            "tools/call", calling() | {"_meta": {"traceparent": carrying(TRACE_A)}}
        )
    async with piped(scripted(**listing(naming("do", {}))), tracing=ON) as client:
        await client.have_done()
    handshake, modern = spans.some(SpanKind.SERVER, CALL)
    assert trace_of(handshake) == TRACE_A
    assert told(modern)["mcp.protocol.version"] == "2026-07-28"
    assert is_child(spans.some(SpanKind.CLIENT, "initialize")[0], of=spans.served("initialize"))


async def test_in_shared_mode_each_session_has_its_own(spans: Spans) -> None:
    async with (
        embedded(mode="shared", tracing=ON) as proxy,
        connect(proxy.url) as alice,
        connect(proxy.url) as bob,
    ):
        await alice.do()
        await bob.do()
        labels = [found.label for found in proxy.manager.registry.awake()]
    served, asked = (spans.some(kind, CALL) for kind in (SpanKind.SERVER, SpanKind.CLIENT))
    assert [told(span)["mcp.session.id"] for span in served] == labels
    assert [told(span)["mcp.session.id"] for span in asked] == labels
    assert all(map(is_child, asked, served))


async def test_a_server_in_this_process_is_a_backend_like_others(spans: Spans) -> None:
    from mcp.server.mcpserver import MCPServer

    def make() -> MCPServer:
        server = MCPServer("here")
        server.add_tool(lambda: "done", name="do")
        return server

    async with embedded(make, tracing=ON) as proxy, connect(proxy.url) as client:
        await client.request("tools/call", {"name": "do", "arguments": {}})
    ours = [span for span in spans.all() if scope_of(span) == "sessionproxy"]
    (asked,) = [s for s in ours if s.kind is SpanKind.CLIENT and s.name == CALL]
    assert told(asked)["sessionproxy.provider.type"] == "memory"
    assert "network.transport" not in told(asked)


def scope_of(span: ReadableSpan) -> str:
    return "" if span.instrumentation_scope is None else span.instrumentation_scope.name


async def test_what_one_session_asks_of_another_is_served_once(spans: Spans) -> None:
    """A session whose backend is made of others (composite) has requests passed on twice; but its
    client has asked once, and knows one session."""
    tracing = Tracing("1")

    def manager() -> SessionManager:
        launcher = tracing.launcher(FakeLauncher())
        return SessionManager("fake", launcher, Limits(), SessionIds(KEY))

    async with manager() as fronts, manager() as parts:
        front = await opened(fronts)
        outer = Exchange("tools/call", b'{"name":"a_do"}', client_id=b"1", sink=FakeSink())
        front.request(outer)
        part = parts.create("alice", OPENING, FakeClient(), FakeSink(), outer.context)
        await parts.opened(part)
        params, context = b'{"name":"do"}', outer.context
        inner = Exchange("tools/call", params, client_id=b"", sink=FakeSink(), context=context)
        part.request(inner)
        shown = Forwarded(True, "request", inner.method, params, inner)
        inner.context.run(tracing.hook(server="a", provider="stdio"), shown)
        inner.settle(Outcome(result=b"{}"))
        outer.settle(Outcome(result=b"{}"))
    (served,) = [s for s in spans.all() if s.kind is SpanKind.SERVER and s.name != "initialize"]
    asked = spans.asked(CALL)
    assert served.name == "tools/call a_do"
    assert is_child(asked, of=served)
    assert told(asked)["mcp.session.id"] == told(served)["mcp.session.id"] == front.label
    assert (told(served)["sessionproxy.server"], told(asked)["sessionproxy.server"]) == (
        "fake",
        "a",
    )
    assert told(asked)["sessionproxy.backend.name"] == "do"
    assert len(spans.some(SpanKind.SERVER, "initialize")) == 1


async def test_a_hook_finds_the_requests_span(spans: Spans) -> None:
    """Hooks run in the request's context, so that what they make belongs to it."""
    seen: dict[str, int] = {}

    def hook(message: object) -> None:
        current = trace.get_current_span().get_span_context()
        seen[getattr(message, "kind", "") + " " + getattr(message, "method", "")] = current.span_id

    async with session(observers=[hook], tracing=ON) as (_, client):
        await client.do()
    served = spans.served(CALL)
    assert served.context is not None
    assert seen["request tools/call"] == seen["result tools/call"] == served.context.span_id
