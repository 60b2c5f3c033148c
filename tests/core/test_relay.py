from collections import Counter
from collections.abc import Sequence
from contextvars import ContextVar

import anyio
import msgspec
import pytest

from sessionproxy.core.context import current_exchange
from sessionproxy.core.exchange import Ask, Exchange, Forwarded, Hook, Outcome
from sessionproxy.core.garbage import LOG_PERIOD, MAX_LINES
from sessionproxy.core.relay import MAX_ASKS, MAX_IN_FLIGHT, MAX_TASK_TOKENS, Relay
from sessionproxy.errors import BackendBusy, BackendGone, Exit
from sessionproxy.wire import Oversize

from .fakes import FakeSink, FakeTransport, FakeUpstream, results

WHO = ContextVar("WHO", default="nobody")


class Wire:
    """A relay between a fake transport and a fake upstream."""

    def __init__(self, *, hooks: Sequence[Hook] = ()) -> None:
        self.transport = FakeTransport()
        self.upstream = FakeUpstream()
        self.tally: Counter[str] = Counter()
        self.relay = Relay(self.transport, self.upstream, hooks=hooks, tally=self.tally)

    def call(
        self,
        params: bytes | None = b"{}",
        *,
        method: str = "tools/call",
        client_id: bytes = b"1",
        attached: bool = True,
    ) -> tuple[Exchange, FakeSink]:
        sink = FakeSink(attached=attached)
        exchange = Exchange(method, params, client_id=client_id, sink=sink)
        self.relay.request(exchange)
        return exchange, sink

    def says(self, message: str) -> None:
        """The backend says `message`, without its `jsonrpc` member."""
        self.relay.receive(b'{"jsonrpc":"2.0",' + message.encode() + b"}")

    def progresses(self, token: object, progress: float) -> None:
        params = {"progressToken": token, "progress": progress, "message": "m"}
        self.says(
            '"method":"notifications/progress","params":' + msgspec.json.encode(params).decode()
        )

    def tokens(self) -> list[object]:
        """The tokens of the progress that went to the client."""
        return [
            msgspec.json.decode(encoded)["params"]["progressToken"]
            for _, encoded, _ in self.upstream.notes
        ]


def value(outcome: Outcome | None) -> object:
    """Return what a result or an error says."""
    assert outcome is not None
    body = outcome.result if outcome.result is not None else outcome.error
    assert body is not None
    return msgspec.json.decode(body)


# -- ids -------------------------------------------------------------------------------------------


def test_ids_are_renumbered_and_answers_find_their_way_back_in_any_order() -> None:
    """DESIGN 5.11; FAULTS F32, F33: also the same client id twice in flight, and `1` and `"1"`."""
    wire = Wire()
    ids = (b"1", b"1", b'"1"', b'"_GET_stream"', b"1")
    sinks = [wire.call(client_id=client_id)[1] for client_id in ids]
    assert [message["id"] for message in wire.transport.sent()] == [1, 2, 3, 4, 5]
    for number in (3, 1, 5, 4, 2):
        wire.says(f'"id":{number},"result":{{"n":{number}}}')
    assert [value(sink.outcome) for sink in sinks] == [{"n": n} for n in range(1, 6)]
    assert wire.relay.in_flight() == ()


def test_an_id_that_was_used_before_is_used_for_another_request() -> None:
    """FAULTS F32: sequential reuse; ours are never used again."""
    wire = Wire()
    for number in (1, 2, 3):
        _, sink = wire.call(client_id=b"1")
        wire.says(f'"id":{number},"result":{number}')
        assert value(sink.outcome) == number


def test_method_and_params_go_to_the_backend_as_they_are() -> None:
    """DESIGN 5.4."""
    wire = Wire()
    wire.call(b'{"name":"t", "x":[1.50, null]}', method="x/unknown")
    wire.call(None)
    assert wire.transport.lines == [
        b'{"jsonrpc":"2.0","id":1,"method":"x/unknown","params":{"name":"t", "x":[1.50, null]}}',
        b'{"jsonrpc":"2.0","id":2,"method":"tools/call"}',
    ]


def test_an_error_is_handed_on_as_it_was_written() -> None:
    """DESIGN 5.4: error code and data."""
    wire = Wire()
    _, sink = wire.call()
    wire.says('"id":1,"error":{"code":-5, "message":"m","data":{"x":1.0}}')
    assert sink.outcome == Outcome(error=b'{"code":-5, "message":"m","data":{"x":1.0}}')


def test_a_second_answer_to_one_request_is_dropped_and_counted() -> None:
    """FAULTS F33."""
    wire = Wire()
    _, sink = wire.call()
    wire.says('"id":1,"result":1')
    wire.says('"id":1,"result":2')
    assert (value(sink.outcome), sink.times_settled) == (1, 1)
    assert wire.tally == {"unmatched_response": 1}


@pytest.mark.parametrize(
    "backend_id", ["2", '"1"', "1.0", "1e0", "-1", "null", "[1]", "10000000000000000000000"]
)
def test_an_answer_to_an_unknown_id_is_dropped_and_counted(backend_id: str) -> None:
    """FAULTS F33; `"1"` is not `1`, which is the id we gave."""
    wire = Wire()
    _, sink = wire.call()
    wire.says(f'"id":{backend_id},"result":2')
    assert (results([sink]), wire.tally) == (["in flight"], {"unmatched_response": 1})
    wire.says('"id":1,"result":1')
    assert value(sink.outcome) == 1


def test_an_answer_with_an_id_of_thousands_of_digits_does_no_harm() -> None:
    """FAULTS F11: id huge; `int` refuses more than 4,300 digits."""
    wire = Wire()
    wire.says(f'"id":{"1" * 5000},"result":2')
    assert sum(wire.tally.values()) == 1


def test_a_late_answer_to_a_request_that_was_cancelled_is_dropped() -> None:
    """FAULTS F33: reply after cancel."""
    wire = Wire()
    exchange, sink = wire.call()
    wire.relay.cancel(exchange, None)
    wire.says('"id":1,"result":1')
    assert (results([sink]), wire.tally) == (["in flight"], {"unmatched_response": 1})


def test_a_cancellation_reaches_the_backend_under_the_id_that_it_knows() -> None:
    """DESIGN 5.9; the client's other members stay."""
    wire = Wire()
    wire.call(client_id=b"7")
    exchange, _ = wire.call(client_id=b"7")
    wire.relay.cancel(exchange, b'{"requestId":7,"reason":"enough","x":[]}')
    wire.relay.cancel(exchange, b'{"requestId":7}')
    assert wire.transport.sent()[2:] == [
        {
            "jsonrpc": "2.0",
            "method": "notifications/cancelled",
            "params": {"requestId": 2, "reason": "enough", "x": []},
        }
    ]


def test_a_request_that_was_answered_is_not_cancelled_any_more() -> None:
    wire = Wire()
    exchange, _ = wire.call()
    wire.says('"id":1,"result":1')
    wire.relay.cancel(exchange, None)
    assert len(wire.transport.lines) == 1


# -- what a line may look like ---------------------------------------------------------------------


def test_every_message_is_one_line_however_it_was_written() -> None:
    """2025-11-25 basic/transports#stdio: no embedded newlines; Node splits on U+2028 too."""
    wire = Wire()
    pretty = '{\n  "a": "\\n",\r\n  "b\u2028": "\u2029"\r}'.encode()
    _, sink = wire.call(pretty)
    wire.relay.notify("x/note", pretty)
    wire.says('"id":"ask","method":"roots/list"')
    ask, _ = wire.upstream.asks[0]
    ask.answer(Outcome(result=pretty))
    wire.says('"id":"ask","method":"roots/list"')
    ask, _ = wire.upstream.asks[1]
    ask.answer(Outcome(error=pretty))
    wire.call(pretty.replace(b"{", b'{"_meta":{\n"progressToken":"\xe2\x80\xa8"},', 1))
    assert len(wire.transport.lines) == 5
    for line in wire.transport.lines:
        assert not set("\n\r\u2028\u2029") & set(line.decode())
        assert b"\\u2028" in line
        assert b"\\u2029" in line
    assert results([sink]) == ["in flight"]


GARBAGE = [
    b"Server running on stdio",
    b"",
    b"{",
    b'{"jsonrpc":"2.0","id":1}',
    b'{"jsonrpc":"2.0","id":1,"result":{},"error":{}}',
    b'{"id":1,"result":{}}',
    b'{"jsonrpc":"2.0","id":1,"result":"\xff"}',
    b'{"jsonrpc":"2.0","id":1,"result":"\x00"}',
    b'{"jsonrpc":"2.0","id":1,"result":"\\ud800"}',
    b'{"jsonrpc":"2.0","id":1,"result":NaN}',
    b'{"jsonrpc":"2.0","id":1,"result":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"jsonrpc":"2.0","id":null,"method":"roots/list"}',
    b'{"jsonrpc":"2.0","id":1.5,"method":"roots/list"}',
    b'{"jsonrpc":"2.0","id":' + b"9" * 2000 + b',"method":"roots/list"}',
    b'{"jsonrpc":"2.0","id":{},"method":"ping"}',
    b'{"jsonrpc":"2.0","method":"x","params":1}',
    b"[]",
    b"[[]]",
    b"[1,",
    b"[" + b",".join([b"{}"] * 101) + b"]",
]


def test_a_request_of_a_backend_with_params_that_are_no_object_is_refused_at_once() -> None:
    """JSON-RPC 2.0, section 5.1: it waits for an answer, so it is not dropped like garbage."""
    wire = Wire()
    wire.relay.receive(b'{"jsonrpc":"2.0","id":7,"method":"roots/list","params":[1]}')
    (answer,) = wire.transport.sent()
    assert answer["id"] == 7
    assert answer["error"] == {"code": -32602, "message": "params is an object"}


@pytest.mark.parametrize("line", GARBAGE, ids=lambda line: repr(line[:40]))
async def test_garbage_is_dropped_and_counted_and_the_pipe_survives(line: bytes) -> None:
    """FAULTS F10, F11."""
    wire = Wire()
    _, sink = wire.call()
    wire.relay.receive(line)
    assert wire.tally == {"garbage_line": 1}
    assert (wire.upstream.asks, wire.upstream.notes, results([sink])) == ([], [], ["in flight"])
    wire.says('"id":1,"result":1')
    assert results([sink]) == ["result"]


async def test_garbage_is_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """FAULTS F10: a backend that floods must not fill the log."""
    wire = Wire()
    for _ in range(10):
        for _ in range(50):
            wire.relay.receive(b"x" * 500)
        await anyio.sleep(LOG_PERIOD / 2)
    assert wire.tally["garbage_line"] == 500
    texts = [record.getMessage() for record in caplog.records]
    assert [int(text.split()[-7]) for text in texts] == [0, 99, 99, 99, 99]
    assert all(len(text) < 300 for text in texts)


async def test_a_backend_that_writes_little_but_garbage_is_killed_once_and_told_why() -> None:
    """FAULTS F10: the calls in flight and the session learn the reason, as with any other end."""
    wire = Wire()
    exchange, _ = wire.call()
    for _ in range(MAX_LINES):
        wire.relay.receive(b"log line")
    assert wire.transport.kills == 0
    wire.relay.receive(b"{}")
    wire.relay.receive(b"{}")
    assert wire.transport.kills == 1
    wire.relay.ended(Exit(signal="SIGKILL", stderr=("last",)))
    (how,) = wire.upstream.exits
    assert (how.signal, how.stderr) == ("SIGKILL", ("last",))
    why = "killed, since it wrote more than 1,000 lines that are no messages in 10 s"
    assert str(how) == why
    assert exchange.outcome is not None
    assert str(exchange.outcome.failure) == f"The backend ended: {why}."


async def test_what_is_asked_of_a_backend_that_has_ended_fails_at_once() -> None:
    """DESIGN 5.3: a probe may be sent in the moment in which its backend ends."""
    wire = Wire()
    wire.relay.ended(Exit(code=7))
    exchange, _ = wire.call()
    assert exchange.outcome is not None
    assert str(exchange.outcome.failure) == "The backend ended: exit status 7."
    assert wire.relay.in_flight() == ()


async def test_a_batch_of_a_backend_is_taken_apart() -> None:
    """2025-03-26 basic/transports#stdio; FAULTS F11."""
    wire = Wire()
    _, first = wire.call()
    _, second = wire.call()
    wire.relay.receive(
        b'[{"jsonrpc":"2.0","id":2,"result":2},garbage]'.replace(b"garbage", b'{"x":1}').replace(
            b"]", b',{"jsonrpc":"2.0","method":"x/note"},{"jsonrpc":"2.0","id":1,"result":1}]'
        )
    )
    assert (value(first.outcome), value(second.outcome)) == (1, 2)
    assert [method for method, _, _ in wire.upstream.notes] == ["x/note"]
    assert wire.tally == {"garbage_line": 1}


@pytest.mark.parametrize(
    ("head", "tail"),
    [
        (b'{"jsonrpc":"2.0","id":2,"result":{"a":"', b'aaa"}}'),
        (b'{"result":{"a":"', b'aaa","id":1},"jsonrpc":"2.0","id":2}'),
    ],
    ids=["id first, as Python writes it", "id last, as TypeScript does"],
)
def test_a_line_that_is_too_long_fails_its_own_call_alone(head: bytes, tail: bytes) -> None:
    """FAULTS F13: "result too large"; the session lives."""
    wire = Wire()
    sinks = [wire.call()[1] for _ in range(3)]
    wire.relay.receive_oversize(Oversize(head, tail), 1024)
    assert results(sinks) == ["in flight", "result_too_large", "in flight"]
    assert "1024 bytes" in str(sinks[1].outcome and sinks[1].outcome.failure)
    wire.relay.receive_oversize(Oversize(head, tail), 1024)
    assert wire.tally["line_too_long"] == 2
    wire.says('"id":3,"result":3')
    assert results(sinks) == ["in flight", "result_too_large", "result"]


def test_a_request_or_garbage_that_is_too_long_fails_no_call() -> None:
    wire = Wire()
    _, sink = wire.call()
    for head, tail in (
        (b'{"method":"sampling/createMessage","params":{"a', b'a"},"jsonrpc":"2.0","id":1}'),
        (b'{"params":{"a', b'a"},"method":"x","jsonrpc":"2.0","id":1}'),
        (b"xxx", b"xxx"),
    ):
        wire.relay.receive_oversize(Oversize(head, tail), 1024)
    assert results([sink]) == ["in flight"]


# -- progress --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "token"),
    [
        (b'"progressToken":7', 7),
        (b'"progressToken":"7"', "7"),
        (b'"progressToken":"\\u0074"', "t"),
        (b'"\\u0070rogressToken":7', 7),
        (b'"progressToken":123456789012345678901', 123456789012345678901),
    ],
)
def test_progress_tokens_are_ours_towards_the_backend_and_the_clients_own_back(
    written: bytes, token: object
) -> None:
    """DESIGN 5.11; FAULTS F34: rewritten per hop."""
    wire = Wire()
    wire.call()
    exchange, _ = wire.call(b'{"_meta":{%b,"kept":1},"name":"t"}' % written)
    assert wire.transport.sent()[1]["params"] == {
        "_meta": {"progressToken": 2, "kept": 1},
        "name": "t",
    }
    wire.progresses(2, 0.5)
    (method, encoded, of) = wire.upstream.notes[0]
    assert (method, of) == ("notifications/progress", exchange)
    assert msgspec.json.decode(encoded) == {
        "jsonrpc": "2.0",
        "method": "notifications/progress",
        "params": {"progressToken": token, "progress": 0.5, "message": "m"},
    }


def test_the_same_token_of_two_requests_is_kept_apart() -> None:
    """DESIGN 8: by progress token."""
    wire = Wire()
    first, _ = wire.call(b'{"_meta":{"progressToken":1}}')
    second, _ = wire.call(b'{"_meta":{"progressToken":1}}')
    wire.progresses(2, 1)
    wire.progresses(1, 1)
    assert [of for _, _, of in wire.upstream.notes] == [second, first]
    assert wire.tokens() == [1, 1]


@pytest.mark.parametrize("token", [2, 99, "1", -1, 1.5, None])
def test_progress_under_an_unknown_token_is_dropped_and_counted(token: object) -> None:
    """FAULTS F34. Token 2 is that of a request which asked for no progress."""
    wire = Wire()
    wire.call(b'{"_meta":{"progressToken":"mine"}}')
    wire.call()
    wire.progresses(token, 1)
    assert wire.upstream.notes == []
    assert sum(wire.tally.values()) == 1


def test_progress_after_the_result_is_dropped() -> None:
    """2025-11-25 basic/utilities/progress: must stop after completion; FAULTS F34."""
    wire = Wire()
    wire.call(b'{"_meta":{"progressToken":1}}')
    wire.says('"id":1,"result":{}')
    wire.progresses(1, 1)
    assert (wire.upstream.notes, wire.tally) == ([], {"progress_dropped": 1})


def test_progress_after_a_cancellation_is_dropped() -> None:
    wire = Wire()
    exchange, _ = wire.call(b'{"_meta":{"progressToken":1}}')
    wire.relay.cancel(exchange, None)
    wire.progresses(1, 1)
    assert (wire.upstream.notes, wire.tally) == ([], {"progress_dropped": 1})


def test_progress_that_decreases_is_dropped_and_that_of_others_is_not() -> None:
    """2025-11-25 basic/utilities/progress: must increase; FAULTS F34."""
    wire = Wire()
    wire.call(b'{"_meta":{"progressToken":"a"}}')
    wire.call(b'{"_meta":{"progressToken":"b"}}')
    for token, progress in ((1, 5), (1, 4), (2, 1), (1, 5), (1, 6), (2, 0.5)):
        wire.progresses(token, progress)
    assert wire.tokens() == ["a", "b", "a", "a"]
    assert wire.tally == {"progress_dropped": 2}


def test_the_token_of_a_task_outlives_the_answer_to_its_request() -> None:
    """2025-11-25 basic/utilities/tasks#progress."""
    wire = Wire()
    wire.call(b'{"task":{"ttl":60000},"_meta":{"progressToken":"mine"}}')
    wire.progresses(1, 1)
    wire.says('"id":1,"result":{"task":{"taskId":"t"}}')
    wire.progresses(1, 2)
    assert wire.tokens() == ["mine", "mine"]
    assert wire.upstream.notes[1][2] is None


def test_tokens_of_tasks_are_kept_in_a_bounded_number_the_oldest_going_first() -> None:
    """DESIGN 5.3: bounded in memory."""
    wire = Wire()
    for number in range(1, MAX_TASK_TOKENS + 2):
        wire.call(b'{"task":{},"_meta":{"progressToken":"t%d"}}' % number)
        wire.says(f'"id":{number},"result":{{}}')
    wire.progresses(1, 1)
    wire.progresses(2, 1)
    wire.progresses(MAX_TASK_TOKENS + 1, 1)
    assert wire.tokens() == ["t2", f"t{MAX_TASK_TOKENS + 1}"]


# -- what the backend asks -------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["7", '"7"', '"a"', "-1", "0"])
def test_a_ping_is_answered_at_once_under_its_own_id(key: str) -> None:
    """DESIGN 5.10."""
    wire = Wire()
    wire.says(f'"id":{key},"method":"ping"')
    assert wire.transport.lines == [b'{"jsonrpc":"2.0","id":%b,"result":{}}' % key.encode()]
    assert wire.upstream.asks == []


@pytest.mark.parametrize("key", ["7", '"7"', '"\\u0061"', "-1"])
@pytest.mark.parametrize("kind", ["result", "error"])
def test_an_ask_is_answered_under_the_backends_own_id(key: str, kind: str) -> None:
    """DESIGN 4: back to the backend under its own id, as it was written."""
    wire = Wire()
    wire.says(f'"id":{key},"method":"sampling/createMessage","params":{{"a":1}}')
    (ask, exchange) = wire.upstream.asks[0]
    assert (ask.method, bytes(ask.params or b""), exchange) == (
        "sampling/createMessage",
        b'{"a":1}',
        None,
    )
    answer = b'{"x":1.0}'
    ask.answer(Outcome(result=answer) if kind == "result" else Outcome(error=answer))
    ask.answer(Outcome(result=b"again"))
    assert wire.transport.lines == [f'{{"jsonrpc":"2.0","id":{key},"{kind}":{{"x":1.0}}}}'.encode()]


def test_an_ask_that_cannot_be_put_to_the_client_gets_an_error() -> None:
    """DESIGN 5.3: every request is answered."""
    wire = Wire()
    wire.says('"id":7,"method":"roots/list"')
    wire.upstream.asks[0][0].answer(Outcome(failure=BackendGone("nobody there")))
    assert wire.transport.sent() == [
        {"jsonrpc": "2.0", "id": 7, "error": {"code": -32603, "message": "nobody there"}}
    ]


def test_two_asks_under_one_id_are_kept_apart_by_refusing_the_second() -> None:
    """2025-11-25 basic#requests: an id must not have been used before; `7` is not `"7"`."""
    wire = Wire()
    for key in ("7", "7", '"7"'):
        wire.says(f'"id":{key},"method":"roots/list"')
    assert len(wire.upstream.asks) == 2
    assert [message["id"] for message in wire.transport.sent()] == [7]
    assert wire.tally == {"ask_refused": 1}
    wire.upstream.asks[0][0].answer(Outcome(result=b"{}"))
    wire.says('"id":7,"method":"roots/list"')
    assert len(wire.upstream.asks) == 3


def test_asks_that_wait_are_bounded_in_number() -> None:
    """DESIGN 5.3, 10: a backend that floods costs its own session at most."""
    wire = Wire()
    for number in range(MAX_ASKS + 5):
        wire.says(f'"id":{number},"method":"roots/list"')
    assert len(wire.upstream.asks) == MAX_ASKS
    assert wire.tally == {"ask_refused": 5}
    assert [message["id"] for message in wire.transport.sent()] == [
        MAX_ASKS + extra for extra in range(5)
    ]


def test_an_ask_belongs_to_the_only_exchange_in_flight() -> None:
    """DESIGN 8."""
    wire = Wire()
    wire.call()
    only, _ = wire.call(attached=False)
    wire.says('"id":1,"result":{}')
    wire.says('"id":7,"method":"roots/list"')
    wire.says('"method":"notifications/message","params":{"data":1}')
    assert wire.upstream.asks[0][1] is only
    assert wire.upstream.notes[0][2] is only


def test_of_several_it_belongs_to_the_newest_that_a_client_reads() -> None:
    """DESIGN 8: the newest one that can carry it; FAULTS F35."""
    wire = Wire()
    wire.call()
    second, _ = wire.call()
    wire.call(attached=False)
    wire.says('"id":7,"method":"roots/list"')
    wire.says('"method":"notifications/message","params":{"data":1}')
    assert wire.upstream.asks[0][1] is second
    assert wire.upstream.notes[0][2] is second


def test_where_no_client_reads_any_it_belongs_to_the_newest() -> None:
    wire = Wire()
    wire.call(attached=False)
    newest, _ = wire.call(attached=False)
    wire.says('"id":7,"method":"roots/list"')
    assert wire.upstream.asks[0][1] is newest


def test_with_nothing_in_flight_it_belongs_to_none() -> None:
    """DESIGN 8: the GET stream where nothing is in flight."""
    wire = Wire()
    wire.call()
    wire.says('"id":1,"result":{}')
    wire.says('"id":7,"method":"roots/list"')
    wire.says('"method":"notifications/message"')
    assert (wire.upstream.asks[0][1], wire.upstream.notes[0][2]) == (None, None)


def test_what_came_on_an_exchanges_own_stream_belongs_to_that() -> None:
    """DESIGN 8: by the response stream it arrived on (HTTP backends)."""
    wire = Wire()
    first, _ = wire.call()
    wire.call()
    wire.relay.receive(b'{"jsonrpc":"2.0","id":7,"method":"roots/list"}', first)
    wire.relay.receive(b'[{"jsonrpc":"2.0","method":"notifications/message"}]', first)
    assert wire.upstream.asks[0][1] is first
    assert wire.upstream.notes[0][2] is first


def test_a_notification_goes_on_as_it_was_written() -> None:
    """DESIGN 5.4: unknown methods and members."""
    wire = Wire()
    line = '{"jsonrpc":"2.0", "method":"x/y","params":{"a":1.0},"unknown":"\u00e9"}'.encode()
    wire.relay.receive(line)
    assert wire.upstream.notes == [("x/y", line, None)]


@pytest.mark.parametrize("key", ["7", '"7"'])
def test_an_ask_that_its_backend_cancels_is_withdrawn(key: str) -> None:
    """DESIGN 5.9, from the backend."""
    wire = Wire()
    wire.says('"id":7,"method":"roots/list"')
    wire.says('"id":"7","method":"roots/list"')
    wire.says(f'"method":"notifications/cancelled","params":{{"requestId":{key}}}')
    ask = wire.upstream.asks[0 if key == "7" else 1][0]
    assert wire.upstream.withdrawn == [ask]
    ask.answer(Outcome(result=b"{}"))
    assert wire.transport.lines == []
    wire.says(f'"id":{key},"method":"roots/list"')
    assert len(wire.upstream.asks) == 3


@pytest.mark.parametrize("params", ['{"requestId":8}', '{"requestId":"7"}', "{}", "null"])
def test_a_cancellation_of_no_ask_is_dropped_and_counted(params: str) -> None:
    wire = Wire()
    wire.says('"id":7,"method":"roots/list"')
    wire.says(f'"method":"notifications/cancelled","params":{params}')
    assert (wire.upstream.withdrawn, wire.tally) == ([], {"unmatched_cancellation": 1})
    assert wire.upstream.notes == []


# -- a backend that does not read, and one that is gone --------------------------------------------


def test_a_request_that_the_backend_does_not_take_fails_alone() -> None:
    """FAULTS: a backend that does not read; nothing was executed."""
    wire = Wire()
    _, first = wire.call()
    wire.transport.busy = True
    _, second = wire.call()
    assert results([first, second]) == ["in flight", "backend_busy"]
    assert len(wire.relay.in_flight()) == 1
    wire.transport.busy = False
    _, third = wire.call()
    wire.says('"id":2,"result":2')
    wire.says('"id":1,"result":1')
    wire.says('"id":3,"result":3')
    assert results([first, second, third]) == ["result", "backend_busy", "result"]


def test_what_has_no_answer_is_lost_and_counted_where_the_backend_does_not_read() -> None:
    wire = Wire()
    exchange, _ = wire.call()
    wire.says('"id":7,"method":"roots/list"')
    wire.transport.busy = True
    wire.relay.notify("x/y", None)
    wire.relay.cancel(exchange, None)
    wire.says('"id":8,"method":"ping"')
    failure = BackendGone("gone")
    with pytest.raises(BackendBusy):
        wire.upstream.asks[0][0].answer(Outcome(failure=failure))
    assert wire.tally == {"backend_busy": 3}


def test_a_clients_answer_that_the_backend_cannot_take_is_refused_and_waited_for_on() -> None:
    """DESIGN 5.3: it is not lost unsaid."""
    wire = Wire()
    wire.says('"id":7,"method":"roots/list"')
    ((ask, _),) = wire.upstream.asks
    wire.transport.busy = True
    with pytest.raises(BackendBusy):
        ask.answer(Outcome(result=b"{}"))
    wire.transport.busy = False
    ask.answer(Outcome(result=b"[]"))
    assert wire.transport.sent() == [{"jsonrpc": "2.0", "id": 7, "result": []}]


def test_what_a_backend_has_to_answer_is_bounded_in_number() -> None:
    """FAULTS F16: clients that hang up leave their calls in flight."""
    wire = Wire()
    calls = [wire.call(attached=False)[1] for _ in range(MAX_IN_FLIGHT + 1)]
    assert len(wire.relay.in_flight()) == MAX_IN_FLIGHT
    assert results(calls[-2:]) == ["in flight", "backend_busy"]
    wire.says('"id":1,"result":1')
    _, sink = wire.call()
    assert results([sink]) == ["in flight"]


def test_when_the_backend_is_gone_everything_is_settled_and_withdrawn() -> None:
    """DESIGN 5.3; FAULTS F06. Asks first, while the streams they went out on are open."""
    order: list[str] = []

    class Noting(FakeSink):
        def settled(self, exchange: Exchange) -> None:
            order.append("settled")
            super().settled(exchange)

    class NotingUpstream(FakeUpstream):
        def withdraw(self, ask: Ask, params: object) -> None:
            order.append("withdrawn")

        def ended(self, how: Exit) -> None:
            order.append(f"ended: {how}")

    transport = FakeTransport()
    relay = Relay(transport, NotingUpstream())
    sinks = [Noting(), Noting()]
    for sink in sinks:
        relay.request(Exchange("tools/call", None, client_id=b"1", sink=sink))
    relay.receive(b'{"jsonrpc":"2.0","id":7,"method":"roots/list"}')
    relay.ended(Exit(code=7))
    assert order == ["withdrawn", "settled", "settled", "ended: exit status 7"]
    assert results(sinks) == ["backend_gone", "backend_gone"]
    failure = sinks[0].outcome and sinks[0].outcome.failure
    assert isinstance(failure, BackendGone)
    assert failure.exit == Exit(code=7)
    assert relay.in_flight() == ()
    relay.receive(b'{"jsonrpc":"2.0","id":1,"result":{}}')
    assert sinks[0].times_settled == 1


def test_the_end_of_a_backend_is_told_once_all_that_it_said_was_handed_on() -> None:
    wire = Wire()
    _, sink = wire.call()
    wire.says('"id":1,"result":1')
    wire.relay.ended(Exit(code=0))
    assert (results([sink]), wire.upstream.exits) == (["result"], [Exit(code=0)])


def test_a_request_made_while_the_others_fail_is_not_swept_away_unsettled() -> None:
    """A client may ask again in the moment it is told; its request must not vanish."""
    wire = Wire()
    again: list[FakeSink] = []

    class Insisting(FakeSink):
        def settled(self, exchange: Exchange) -> None:
            super().settled(exchange)
            again.append(wire.call()[1])

    wire.relay.request(Exchange("tools/call", None, client_id=b"1", sink=Insisting()))
    wire.relay.fail_all(BackendGone("gone"))
    assert len(wire.relay.in_flight()) == 1
    wire.relay.fail_all(BackendGone("gone"))
    assert results(again) == ["backend_gone"]


# -- hooks and contexts ----------------------------------------------------------------------------

Seen = tuple[str, bool, str, str, "Exchange | None"]


class Watcher:
    """A hook that notes for whom it ran."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    def __call__(self, message: Forwarded) -> None:
        assert current_exchange.get() is message.exchange
        self.seen.append(
            (WHO.get(), message.to_backend, message.kind, message.method, message.exchange)
        )

    def whose(self) -> list[str]:
        return [seen[0] for seen in self.seen]


def call_as(who: str, wire: Wire, params: bytes = b"{}") -> Exchange:
    token = WHO.set(who)
    try:
        return wire.call(params)[0]
    finally:
        WHO.reset(token)


def test_hooks_run_in_the_context_of_the_exchange_that_a_message_belongs_to() -> None:
    """DESIGN 8: two overlapping calls, on a reused backend, the second time too."""
    watcher = Watcher()
    wire = Wire(hooks=[watcher])
    for turn in range(2):
        first, second = 2 * turn + 1, 2 * turn + 2
        watcher.seen.clear()
        call_as("alice", wire, b'{"_meta":{"progressToken":"a"}}')
        call_as("bob", wire, b'{"_meta":{"progressToken":"b"}}')
        wire.progresses(first, 1)
        wire.progresses(second, 1)
        wire.progresses(first, 2)
        wire.says(f'"id":{first},"result":{{}}')
        wire.says(f'"id":{second},"error":{{}}')
        assert watcher.whose() == ["alice", "bob", "alice", "bob", "alice", "alice", "bob"]
        assert [seen[1:4] for seen in watcher.seen[-2:]] == [
            (False, "result", "tools/call"),
            (False, "error", "tools/call"),
        ]
    assert WHO.get() == "nobody"


def test_a_log_message_and_an_ask_run_in_the_context_of_the_call_they_are_attributed_to() -> None:
    """DESIGN 8: both must elicit, log and report correctly."""
    watcher = Watcher()
    wire = Wire(hooks=[watcher])
    call_as("alice", wire)
    bobs = call_as("bob", wire)
    watcher.seen.clear()
    wire.says('"method":"notifications/message"')
    wire.says('"id":7,"method":"elicitation/create","params":{}')
    wire.upstream.asks[0][0].answer(Outcome(result=b"{}"))
    wire.says('"id":2,"result":{}')
    wire.says('"method":"notifications/message"')
    assert watcher.whose() == ["bob", "bob", "bob", "bob", "alice"]
    assert watcher.seen[1:3] == [
        ("bob", False, "request", "elicitation/create", bobs),
        ("bob", True, "result", "elicitation/create", bobs),
    ]


def test_what_belongs_to_no_exchange_runs_in_nobodys_context_but_a_clients_notification() -> None:
    """The receive loop has the ContextVars of whoever started it; a hook must not see them. A
    notification of the client is passed on by the request that brought it."""
    watcher = Watcher()
    wire = Wire(hooks=[watcher])
    token = WHO.set("the loop, or the client")
    try:
        wire.says('"method":"notifications/message"')
        wire.relay.notify("notifications/initialized", None)
    finally:
        WHO.reset(token)
    assert [seen[:4] for seen in watcher.seen] == [
        ("nobody", False, "notification", "notifications/message"),
        ("the loop, or the client", True, "notification", "notifications/initialized"),
    ]


def test_a_hook_sees_what_the_client_wrote_and_what_the_client_gets() -> None:
    """Ids and tokens of ours are between the relay and the backend."""
    bodies: list[object] = []
    wire = Wire(hooks=[lambda message: bodies.append(msgspec.json.decode(message.body or b"null"))])
    wire.call(b'{"_meta":{"progressToken":"mine"}}')
    wire.progresses(1, 1)
    wire.says('"id":1,"result":{"x":1}')
    assert bodies == [
        {"_meta": {"progressToken": "mine"}},
        {"progressToken": "mine", "progress": 1, "message": "m"},
        {"x": 1},
    ]


def test_what_a_hook_notes_at_a_late_answer_is_seen_by_no_other_session() -> None:
    """DESIGN 5.1, 8: the answer to an ask whose call is settled belongs to no request any more."""
    seen: list[str] = []

    def notes(message: Forwarded) -> None:
        if message.kind == "result" and message.to_backend:
            seen.append(WHO.get())
            WHO.set("the session before")

    for _ in range(2):
        wire = Wire(hooks=[notes])
        wire.call()
        wire.says('"id":"q","method":"roots/list"')
        (ask,) = (ask for ask, _ in wire.upstream.asks)
        wire.says('"id":1,"result":{}')
        ask.answer(Outcome(result=b"{}"))
    assert seen == ["nobody", "nobody"]


def test_a_hook_that_fails_stops_no_message_and_no_other_hook(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A hook is not ours."""
    seen: list[str] = []

    def breaks(message: Forwarded) -> None:
        raise RuntimeError("not mine")

    wire = Wire(hooks=[breaks, lambda message: seen.append(message.kind)])
    _, sink = wire.call()
    wire.says('"method":"x/y"')
    wire.says('"id":1,"result":{}')
    assert (results([sink]), len(wire.upstream.notes)) == (["result"], 1)
    assert seen == ["request", "notification", "result"]
    assert len(caplog.records) == 3


async def test_what_is_dropped_is_not_shown_to_hooks() -> None:
    seen: list[str] = []
    wire = Wire(hooks=[lambda message: seen.append(message.kind)])
    wire.says('"id":1,"result":{}')
    wire.says('"id":1,"method":"ping"')
    wire.progresses(1, 1)
    wire.relay.receive(b"garbage")
    assert seen == []
