"""DESIGN 5.1, 8, 10: whose is what a shared backend sends, and what a session may do to it."""

from collections import Counter

import msgspec
import pytest

from sessionproxy.backends.share import MAX_LISTENS, MAX_OF_ONE, Share, SharedBackend
from sessionproxy.core.deadlines import CALL_LIMIT
from sessionproxy.core.exchange import Ask, Exchange, Forwarded, Outcome
from sessionproxy.core.relay import MAX_IN_FLIGHT, Relay
from sessionproxy.errors import (
    BackendBusy,
    BackendFailed,
    BackendRefused,
    BackendSilent,
    Exit,
    ProxyError,
    ResultTooLarge,
)
from sessionproxy.wire import Envelope
from sessionproxy.wire.params import LARGE
from tests.core.fakes import FakeSink, FakeTransport, FakeUpstream

WELCOME = msgspec.json.encode(
    {
        "protocolVersion": "2025-06-18",
        "capabilities": {"tools": {}, "tasks": {"list": {}}},
        "serverInfo": {"name": "s", "x": [None]},
        "x": 1,
    }
)
CAN = b'{"capabilities":{"elicitation":{"form":{},"url":{}},"roots":{}}}'
LOUD = Envelope("2026-07-28", b"{}", log_level="debug")
QUIET = Envelope("2026-07-28", b"{}")


class Upstream(FakeUpstream):
    def hold(self, exchange: Exchange) -> None: ...


class World:
    """One shared backend behind a relay and a transport that only keeps."""

    def __init__(self, *, modern: bool = False) -> None:
        self.tally: Counter[str] = Counter()
        self.transport = FakeTransport()
        self.shown: list[Forwarded] = []
        self.over: list[Exit] = []
        self.useless: list[Exit] = []
        self.shared = SharedBackend(
            modern=modern, tally=self.tally, over=self.over.append, useless=self.useless.append
        )
        self.relay = Relay(self.transport, self.shared, hooks=[self.shown.append])
        self.shared.started(self.relay, WELCOME)

    def session(self, user: str) -> tuple[Share, Upstream]:
        upstream = Upstream()
        share = self.shared.admit(user, upstream)
        send(share, "initialize", CAN)
        return share, upstream

    def says(self, *, via: Exchange | None = None, **message: object) -> None:
        """The backend writes a message."""
        self.relay.receive(msgspec.json.encode({"jsonrpc": "2.0", **message}), via)

    def answers(self, exchange: Exchange) -> None:
        self.says(id=exchange.backend_id, result={})

    def logs(self, *, via: Exchange | None = None) -> None:
        self.says(via=via, method="notifications/message", params={"level": "info", "data": 1})

    def asks(self, number: int, *, via: Exchange | None = None) -> None:
        params = {"message": "?", "elicitationId": f"e{number}", "_meta": {"progressToken": 77}}
        self.says(via=via, id=number, method="elicitation/create", params=params)

    def sent(self, method: str) -> list[object]:
        """The parameters of what the backend was sent under this method."""
        return [m.get("params") for m in self.transport.sent() if m.get("method") == method]

    def answers_to(self, number: int) -> list[dict[str, object]]:
        """What a question of the backend was answered with."""
        return [m for m in self.transport.sent() if m.get("id") == number and "method" not in m]


@pytest.fixture
def world() -> World:
    return World()


def send(
    share: Share,
    method: str = "tools/call",
    params: bytes | None = b"{}",
    envelope: Envelope | None = None,
) -> Exchange:
    exchange = Exchange(method, params, client_id=b"1", sink=FakeSink(), envelope=envelope)
    share.request(exchange)
    return exchange


def result_of(exchange: Exchange) -> dict[str, object]:
    assert exchange.outcome is not None
    assert exchange.outcome.result is not None
    return msgspec.json.decode(exchange.outcome.result, type=dict[str, object])


def logged(upstream: Upstream) -> int:
    return sum(method == "notifications/message" for method, _, _ in upstream.notes)


# -- whose it is -----------------------------------------------------------------------------------


def test_what_comes_on_a_requests_own_stream_belongs_to_it(world: World) -> None:
    """DESIGN 8: HTTP backends; whoever else has something in flight, and whoever was there."""
    (one, mine), (two, others) = world.session("alice"), world.session("bob")
    ours, theirs = send(one), send(two)
    world.logs(via=theirs)
    world.asks(5, via=theirs)
    assert (logged(mine), logged(others)) == (0, 1)
    assert ([*mine.asks], [e for _, e in others.asks]) == ([], [theirs])
    world.logs(via=ours)
    assert (logged(mine), logged(others)) == (1, 1)


def test_on_a_pipe_what_several_sessions_may_have_led_to_is_nobodys(world: World) -> None:
    """FAULTS I1; hooks are told of no request either."""
    (one, mine), (two, others) = world.session("alice"), world.session("alice")
    send(one)
    send(two)
    world.logs()
    world.asks(5)
    assert (mine.notes, mine.asks, others.notes, others.asks) == ([], [], [], [])
    assert {f.exchange for f in world.shown if not f.to_backend} == {None}
    assert "several requests" in str(world.answers_to(5)[0]["error"])
    assert world.tally == {"ask_without_session": 1, "note_without_session": 1}


def test_what_comes_late_on_a_requests_own_stream_is_nobody_elses(world: World) -> None:
    """FAULTS I1: on a stream whose answer has come already; the only one in flight is not asked."""
    (one, _), (two, others) = world.session("alice"), world.session("bob")
    over = send(one)
    world.answers(over)
    send(two)
    world.logs(via=over)
    world.asks(5, via=over)
    assert (others.notes, others.asks) == ([], [])
    assert "cannot be attributed" in str(world.answers_to(5)[0]["error"])


def test_what_a_cancelled_request_may_have_led_to_is_nobody_elses(world: World) -> None:
    """FAULTS I1: the backend may work on it still (2025-11-25 basic/utilities/cancellation), also
    when its session is over; that it has answered after all says that it is done."""
    (one, mine), (two, others) = world.session("alice"), world.session("alice")
    left, open_ = send(one), send(two)
    one.cancel(left, None)
    one.close()
    world.asks(5)
    assert (mine.asks, others.asks) == ([], [])
    assert "one that was cancelled" in str(world.answers_to(5)[0]["error"])
    two.cancel(send(two), None)  # its own is no other's
    world.answers(left)
    world.asks(6)
    assert [e for _, e in others.asks] == [open_]


@pytest.mark.parametrize(
    ("failure", "is_sure"),
    [
        (ResultTooLarge("too large"), True),
        (BackendRefused("refused"), True),
        (BackendFailed("the connection broke"), False),
    ],
)
def test_a_request_that_failed_may_be_worked_on_still_unless_it_is_certainly_over(
    failure: ProxyError, is_sure: bool, world: World
) -> None:
    """FAULTS I1; and what one session does wrong takes no question from another."""
    (one, _), (two, others) = world.session("alice"), world.session("bob")
    meta = b'{"_meta":{"progressToken":1,"x":"%b"}}' % (b"x" * LARGE)
    failed, odd = send(one), send(one, params=meta)
    assert odd.outcome is not None
    world.relay.settle(failed, Outcome(failure=failure))
    send(two)
    world.asks(5)
    assert bool(others.asks) == is_sure


def test_what_only_one_session_can_have_led_to_is_its(world: World) -> None:
    """Though it has two requests in flight: then it is as with a backend of its own."""
    (one, mine), (two, others) = world.session("alice"), world.session("alice")
    world.answers(send(two))
    first, second = send(one), send(one)
    world.logs()
    world.asks(5)
    assert [e for _, _, e in mine.notes] == [second]
    assert [e for _, e in mine.asks] == [second]
    assert (others.notes, others.asks, first.outcome) == ([], [], None)


def test_a_pipe_that_two_users_have_used_tells_nobody_what_is_logged(world: World) -> None:
    """FAULTS I1: it may be late, of a request that was answered long ago."""
    (one, mine), (two, others) = world.session("alice"), world.session("bob")
    world.answers(send(two, "tools/list"))
    send(one)
    world.logs()
    assert logged(mine) == 1  # nothing of bob's has got there yet
    world.answers(send(two))
    world.logs()
    world.says(method="notifications/x-of-its-own", params={})
    assert (logged(mine), len(mine.notes), others.notes) == (1, 1, [])
    world.asks(5)
    assert len(mine.asks) == 1


def test_a_modern_backend_logs_for_the_requests_that_ask_it_to() -> None:
    """2026-07-28 server/utilities/logging: before the answer, and for no others."""
    world = World(modern=True)
    (one, mine), (two, others) = world.session("alice"), world.session("bob")
    send(two, envelope=QUIET)
    send(two, "subscriptions/listen", envelope=LOUD)
    world.logs()
    loud = send(one, envelope=LOUD)
    world.logs()
    assert ([e for _, _, e in mine.notes], others.notes) == ([loud], [])
    send(two, envelope=LOUD)
    world.logs()
    assert (logged(mine), others.notes) == (1, [])


def test_progress_belongs_to_its_token(world: World) -> None:
    """DESIGN 8, 10: remapped; both clients chose the same."""
    params = b'{"_meta":{"progressToken":1}}'
    (one, mine), (two, others) = world.session("alice"), world.session("bob")
    ours, theirs = send(one, params=params), send(two, params=params)
    progress = {"progressToken": theirs.backend_id, "progress": 1}
    world.says(method="notifications/progress", params=progress)
    assert mine.notes == []
    ((_, encoded, exchange),) = others.notes
    assert msgspec.json.decode(encoded)["params"]["progressToken"] == 1
    assert exchange is theirs
    assert ours.outcome is None


def test_progress_of_a_task_is_nobodys(world: World) -> None:
    """`NO_TASKS`: none is asked for, so none is told of."""
    share, upstream = world.session("alice")
    call = send(share, params=b'{"task":{},"_meta":{"progressToken":1}}')
    world.answers(call)
    progress = {"progressToken": call.backend_id, "progress": 1}
    world.says(method="notifications/progress", params=progress)
    assert world.sent("tools/call") == [{"_meta": {"progressToken": call.backend_id}}]
    send(share)
    world.says(method="notifications/tasks/status", params={"taskId": "t"})
    assert upstream.notes == []


def test_that_an_elicitation_is_complete_is_told_to_who_was_asked(world: World) -> None:
    """2025-11-25 client/elicitation: by its id."""
    (one, mine), (two, others) = world.session("alice"), world.session("bob")
    call = send(one)
    world.asks(5)
    mine.asks[0][0].answer(Outcome(result=b'{"action":"accept"}'))
    world.answers(call)
    send(two)
    for key in ("e5", "e5", "e6"):
        params = {"elicitationId": key}
        world.says(method="notifications/elicitation/complete", params=params)
    assert ([method for method, _, _ in mine.notes], others.notes) == (
        ["notifications/elicitation/complete"],
        [],
    )


def test_a_subscription_of_the_modern_era_is_told_to_who_listens() -> None:
    """2026-07-28 basic/patterns/subscriptions: by its id; one that nobody has is nobody's."""
    world = World(modern=True)
    (one, mine), (two, others) = world.session("alice"), world.session("bob")
    ours, theirs = (send(s, "subscriptions/listen", envelope=QUIET) for s in (one, two))
    for number in (theirs.backend_id, 999, "x"):
        meta = {"io.modelcontextprotocol/subscriptionId": number}
        world.says(method="notifications/resources/updated", params={"uri": "x", "_meta": meta})
    assert (mine.notes, len(others.notes)) == ([], 1)
    two.cancel(theirs, None)
    meta = {"io.modelcontextprotocol/subscriptionId": theirs.backend_id}
    world.says(method="notifications/resources/updated", params={"uri": "x", "_meta": meta})
    assert (len(others.notes), ours.outcome) == (1, None)


# -- what is asked ---------------------------------------------------------------------------------


def test_who_asks_for_roots_on_nobodys_behalf_gets_none(world: World) -> None:
    """DESIGN 9; servers ask for them as soon as they are initialised."""
    (one, mine), (two, _) = world.session("alice"), world.session("bob")
    world.says(id=5, method="roots/list")
    assert [answer["result"] for answer in world.answers_to(5)] == [{"roots": []}]
    send(one)
    send(two)
    world.says(id=6, method="roots/list")
    assert ["several requests" in str(answer["error"]) for answer in world.answers_to(6)] == [True]
    assert mine.asks == []


def test_an_answer_goes_back_under_the_backends_own_id(world: World) -> None:
    """DESIGN 4; where it cannot be taken now, the session may answer again."""
    share, upstream = world.session("alice")
    send(share)
    world.asks(5)
    (ask, _) = upstream.asks[0]
    world.transport.busy = True
    with pytest.raises(BackendBusy):
        ask.answer(Outcome(result=b'{"action":"accept"}'))
    world.transport.busy = False
    ask.answer(Outcome(result=b'{"action":"accept"}'))
    ask.answer(Outcome(result=b'{"action":"cancel"}'))
    assert [answer["result"] for answer in world.answers_to(5)] == [{"action": "accept"}]


def test_a_question_that_the_backend_takes_back_is_taken_back_from_who_was_asked(
    world: World,
) -> None:
    """2025-11-25 basic/utilities/cancellation."""
    share, upstream = world.session("alice")
    send(share)
    world.asks(5)
    world.says(method="notifications/cancelled", params={"requestId": 5})
    (ask, _) = upstream.asks[0]
    assert upstream.withdrawn == [ask]
    assert world.answers_to(5) == []


@pytest.mark.parametrize("how", ["the question", "the session"])
def test_a_question_that_the_session_leaves_is_answered(world: World, how: str) -> None:
    """DESIGN 5.3: the backend goes on, and would wait for ever."""
    share, upstream = world.session("alice")
    send(share)
    world.asks(5)
    (ask, _) = upstream.asks[0]
    if how == "the question":
        ask.withdraw()
    else:
        share.close()
    assert ["no longer there" in str(a["error"]) for a in world.answers_to(5)] == [True]


def test_a_client_tells_progress_of_what_it_was_asked_alone(world: World) -> None:
    """DESIGN 5.1: a token is the backend's, and could be another's question."""
    (one, mine), (two, _) = world.session("alice"), world.session("bob")
    send(one)
    world.asks(5)
    assert len(mine.asks) == 1
    for share, token in ((two, b"77"), (one, b"78"), (one, b"77")):
        share.notify("notifications/progress", b'{"progressToken":%b,"progress":1}' % token)
    assert world.sent("notifications/progress") == [{"progressToken": 77, "progress": 1}]


def test_what_one_client_says_of_itself_is_not_said_of_all(world: World) -> None:
    """`NOT_PASSED_ON`; what is not known goes on (DESIGN 5.4)."""
    share, _ = world.session("alice")
    for name in ("initialized", "cancelled", "roots/list_changed", "tasks/status", "x-more"):
        share.notify(f"notifications/{name}", b'{"requestId":1}')
    sent = [m["method"] for m in world.transport.sent()]
    assert sent == ["notifications/x-more"]


# -- what it said of itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("2024-11-05", "2024-11-05"),
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-06-18"),
        ("1999-01-01", "2025-06-18"),
    ],
)
def test_a_client_gets_the_backends_revision_or_an_older_one_that_it_asks_for(
    world: World, asked: str, got: str
) -> None:
    """2025-11-25 basic/lifecycle#version-negotiation; all else is as the backend wrote it."""
    share = world.shared.admit("alice", Upstream())
    params = msgspec.json.encode({"protocolVersion": asked})
    assert result_of(send(share, "initialize", params)) == {
        "protocolVersion": got,
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "s", "x": [None]},
        "x": 1,
    }


# -- what a session may do to others ---------------------------------------------------------------


def test_one_session_cannot_take_all_that_the_backend_takes(world: World) -> None:
    """`MAX_OF_ONE`."""
    (one, _), (two, _) = world.session("alice"), world.session("bob")
    flood = [send(one) for _ in range(MAX_IN_FLIGHT)]
    refused = [e for e in flood if e.outcome is not None]
    assert len(flood) - len(refused) == MAX_OF_ONE
    assert all(isinstance(e.outcome and e.outcome.failure, BackendBusy) for e in refused)
    assert send(two).outcome is None
    world.answers(flood[0])
    assert send(one).outcome is None


def test_subscriptions_leave_room_for_calls() -> None:
    """`MAX_LISTENS`."""
    world = World(modern=True)
    sessions = [world.session(str(n))[0] for n in range(MAX_LISTENS + 1)]
    listens = [send(s, "subscriptions/listen", envelope=QUIET) for s in sessions]
    assert [n for n, e in enumerate(listens) if e.outcome is not None] == [MAX_LISTENS]
    assert send(sessions[-1], envelope=QUIET).outcome is None
    sessions[0].close()
    assert send(sessions[-1], "subscriptions/listen", envelope=QUIET).outcome is None


def test_a_session_cancels_only_what_is_its_own(world: World) -> None:
    """DESIGN 10."""
    (one, _), (two, _) = world.session("alice"), world.session("bob")
    ours, theirs = send(one), send(two)
    one.cancel(theirs, None)
    assert world.sent("notifications/cancelled") == []
    one.cancel(ours, b'{"reason":"x"}')
    ours.settle(Outcome(failure=BackendBusy("x")))
    told = {"requestId": ours.backend_id, "reason": "x"}
    assert world.sent("notifications/cancelled") == [told]
    assert (one.in_flight(), two.in_flight()) == ((), (theirs,))


def test_what_is_settled_without_the_backend_is_cancelled_at_it(world: World) -> None:
    """DESIGN 10: a session's end settles what it has in flight; nobody waits for the answers."""
    (one, _), (two, _) = world.session("alice"), world.session("bob")
    ours, theirs = send(one), send(two)
    ours.settle(Outcome(failure=BackendBusy("x")))
    one.close()
    assert world.sent("notifications/cancelled") == [{"requestId": ours.backend_id}]
    world.answers(theirs)
    assert theirs.outcome is not None
    assert theirs.outcome.result is not None


def test_closing_settles_what_is_left(world: World) -> None:
    """DESIGN 5.3: also what waits for an answer that was asked for on behalf of several."""
    share, _ = world.session("alice")
    waiting = [send(share), send(share, "resources/subscribe", b'{"uri":"x"}')]
    share.close()
    assert all(e.outcome is not None and e.outcome.failure is not None for e in waiting)
    assert len(world.shared) == 0


def test_three_calls_in_a_row_that_nobody_got_an_answer_to_are_enough(world: World) -> None:
    """FAULTS F08; one answer, to whomever, and the count begins again."""
    (one, mine), (two, others) = world.session("alice"), world.session("bob")
    waiting = send(two)
    for calls in (2, 2, 3):
        assert world.useless == []
        world.answers(send(two))
        for _ in range(calls):
            call = send(one)
            one.cancel(call, CALL_LIMIT)
            call.settle(Outcome(failure=BackendSilent("The backend did not answer in 1 s.")))
            one.cancel(send(one), None)  # whoever has lost patience is no judge
    (how,) = world.useless
    assert "did not answer" in str(how)
    world.shared.end(how)
    assert mine.exits == others.exits == world.over == [how]
    assert waiting.outcome is not None
    assert waiting.outcome.failure is not None


def test_lists_are_told_to_all_and_updates_to_those_who_asked(world: World) -> None:
    """DESIGN 10."""
    (one, mine), (_, others) = world.session("alice"), world.session("bob")
    subscribing = send(one, "resources/subscribe", b'{"uri":"x://a"}')
    world.says(id=1, result={})
    assert result_of(subscribing) == {}
    world.says(method="notifications/resources/updated", params={"uri": "x://a/b"})
    world.says(method="notifications/prompts/list_changed")
    assert [method.rpartition("/")[2] for method, _, _ in mine.notes] == ["updated", "list_changed"]
    assert [method.rpartition("/")[2] for method, _, _ in others.notes] == ["list_changed"]


def test_its_end_fails_what_is_in_flight_and_takes_questions_back(world: World) -> None:
    """FAULTS F06."""
    (one, mine), (two, others) = world.session("alice"), world.session("bob")
    ours = send(one)
    world.asks(5)
    theirs = send(two)
    world.relay.ended(Exit(code=7))
    assert all("exit status 7" in str(e.outcome and e.outcome.failure) for e in (ours, theirs))
    (asked, _) = mine.asks[0]
    assert mine.withdrawn == [asked]
    assert mine.exits == others.exits == world.over == [Exit(code=7)]
    assert isinstance(asked, Ask)
