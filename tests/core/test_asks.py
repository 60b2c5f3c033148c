"""What waits for the client's answer, and that nothing waits for ever."""

import pytest

from sessionproxy.core.asks import Asks
from sessionproxy.core.exchange import Ask, Outcome
from sessionproxy.errors import BackendBusy

from .fakes import FakeClient, FakeSink


def asked(asks: Asks, sink: FakeSink | None = None) -> tuple[Ask, list[Outcome]]:
    answers: list[Outcome] = []
    ask = Ask("roots/list", b"{}", answers.append)
    asks.send(ask, sink)
    return ask, answers


def test_what_was_given_up_on_its_way_waits_no_more() -> None:
    """DESIGN 5.3: a backend that asks on and on of one who does not listen fills no memory."""
    asks = Asks(FakeClient())
    ask, answers = asked(asks)
    assert len(asks.waiting) == 1
    ask.answer(Outcome(error=b"{}"))
    assert len(asks.waiting) == 0
    assert len(answers) == 1


def test_an_answer_that_the_backend_cannot_take_is_waited_for_on() -> None:
    """DESIGN 5.3: the client is told, and may send it again."""
    asks = Asks(FakeClient())
    taken: list[Outcome] = []

    def busy(outcome: Outcome) -> None:
        if not taken:
            taken.append(outcome)
            raise BackendBusy("It does not read.")
        taken.append(outcome)

    asks.send(Ask("roots/list", b"{}", busy), None)
    with pytest.raises(BackendBusy):
        asks.answer(b"1", Outcome(result=b"{}"))
    assert asks.answer(b"1", Outcome(result=b"[]"))
    assert not asks.answer(b"1", Outcome(result=b"{}"))
    assert [outcome.result for outcome in taken] == [b"{}", b"[]"]


def test_what_is_withdrawn_after_its_stream_ended_goes_out_on_the_clients_own() -> None:
    """DESIGN 5.3: else the client's dialog would stay up."""
    client, sink, other = FakeClient(), FakeSink(), FakeSink()
    asks = Asks(client)
    first, _ = asked(asks, sink)
    second, _ = asked(asks, other)
    asks.moved(sink)
    asks.withdraw(first, None)
    asks.withdraw(second, None)
    assert [len(sink.messages), len(other.messages), len(client.messages)] == [1, 2, 1]


@pytest.mark.parametrize(
    ("listening", "attached", "nobody"),
    [(False, False, True), (False, True, False), (True, False, False)],
)
def test_nobody_reads_where_no_stream_is_open_for_what_was_asked(
    listening: bool, attached: bool, nobody: bool
) -> None:
    asks = Asks(FakeClient(listening=listening))
    assert not asks.nobody_reads()
    asked(asks, FakeSink(attached=attached))
    assert asks.nobody_reads() is nobody


def test_giving_up_answers_everything_with_an_error() -> None:
    asks = Asks(FakeClient())
    answers = [asked(asks)[1], asked(asks, FakeSink())[1]]
    asks.give_up()
    assert len(asks.waiting) == 0
    assert all(len(found) == 1 and found[0].failure is not None for found in answers)


def test_what_cannot_be_given_up_now_is_given_up_later() -> None:
    """DESIGN 5.3: many at once are more than the backend's pipe takes; none is forgotten."""
    asks = Asks(FakeClient())
    room = [2]
    answered: list[Outcome] = []

    def answer(outcome: Outcome) -> None:
        if not room[0]:
            raise BackendBusy("It does not read.")
        room[0] -= 1
        answered.append(outcome)

    for _ in range(5):
        asks.send(Ask("roots/list", b"{}", answer), None)
    asks.give_up()
    assert (len(answered), len(asks.waiting)) == (2, 3)
    room[0] = 5
    asks.give_up()
    assert (len(answered), len(asks.waiting)) == (5, 0)
