"""FAULTS, I1 to I7: a history that breaks one is reported, a clean one is not."""

from pathlib import Path

import msgspec
import pytest

from .history import FAULT, LOSS, Entry, Execution, History, Json, Outcome, violations

LOST = {"kind": "state_lost", "outcome": "not_executed"}
GONE = {"kind": "backend_gone", "outcome": "unknown"}


class Story:
    """A history told in short sentences. Requests have the tokens t1, t2, ..."""

    def __init__(self) -> None:
        self.history = History()

    def sends(self, session: str = "alice", kind: str = "tools/call") -> Entry:
        return self.history.sent(session, kind, f"t{len(self.history.entries) + 1}")

    def runs(self, entry: Entry, nonce: str, count: int) -> None:
        self.history.executions.append(Execution(nonce, count, entry.kind, entry.token))

    def answers(self, entry: Entry, nonce: str, count: int) -> None:
        result = {"structuredContent": {"nonce": nonce, "count": count}}
        self.history.answered(entry, {"id": 1, "result": result})

    def fails(self, entry: Entry, fault: Json) -> None:
        self.history.answered(
            entry, {"id": 1, "result": {"isError": True, "_meta": {FAULT: fault}}}
        )

    def call(self, nonce: str, count: int, session: str = "alice") -> Entry:
        entry = self.sends(session)
        self.runs(entry, nonce, count)
        self.answers(entry, nonce, count)
        return entry

    def told(self, session: str = "alice", **more: str) -> Entry:
        entry = self.sends(session)
        self.fails(entry, {**LOST, **more})
        return entry

    def found(self, invariant: str) -> bool:
        """Whether this invariant is broken, and no other."""
        names = {line.split(":")[0] for line in violations(self.history)}
        assert names <= {invariant}, violations(self.history)
        return bool(names)


@pytest.fixture
def story() -> Story:
    return Story()


def test_a_clean_history_breaks_nothing(story: Story) -> None:
    """Calls that overlap, a crash in a call, its telling, and a fresh backend."""
    first, second = story.sends(), story.sends("bob")
    for entry, nonce in ((first, "a"), (second, "b")):
        story.runs(entry, nonce, 1)
    story.answers(second, "b", 1)
    story.answers(first, "a", 1)
    crashed = story.sends()
    story.runs(crashed, "a", 2)
    story.fails(crashed, GONE)
    story.told()
    story.call("c", 1)
    story.call("b", 2, "bob")
    story.history.foreign.append(404)
    assert violations(story.history) == []


def test_a_nonce_in_two_sessions_breaks_i1(story: Story) -> None:
    story.call("a", 1)
    story.call("a", 2, "bob")
    assert "I1: backend a served several sessions: alice, bob" in violations(story.history)


def test_a_request_executed_by_anothers_backend_breaks_i1(story: Story) -> None:
    """The ledger tells it, although nobody had an answer."""
    story.call("a", 1)
    strayed = story.sends("bob")
    story.runs(strayed, "a", 2)
    story.history.finished(strayed, Outcome.CLOSED)
    assert any(line.startswith("I1") for line in violations(story.history))


def test_an_answer_of_another_request_breaks_i1(story: Story) -> None:
    first, second = story.sends(), story.sends()
    story.runs(first, "a", 1)
    story.runs(second, "a", 2)
    story.answers(first, "a", 2)
    story.answers(second, "a", 1)
    assert story.found("I1")


def test_an_answer_of_a_backend_that_was_replaced_breaks_i1(story: Story) -> None:
    story.call("a", 1)
    story.told()
    story.call("b", 1)
    story.call("a", 2)
    assert story.found("I1")


def test_a_request_executed_twice_breaks_i2(story: Story) -> None:
    entry = story.sends()
    story.runs(entry, "a", 1)
    story.runs(entry, "a", 2)
    story.history.finished(entry, Outcome.CLOSED)
    assert "I2: the request t1 was executed 2 times" in violations(story.history)


@pytest.mark.parametrize("how", ["refused", "told"])
def test_a_request_executed_although_it_was_said_not_to_be_breaks_i2(
    story: Story, how: str
) -> None:
    story.call("a", 1)
    entry = story.sends()
    if how == "refused":
        story.history.finished(entry, Outcome.REFUSED, status=503)
    else:
        story.fails(entry, LOST)
    assert violations(story.history) == []
    story.runs(entry, "a", 2)
    assert any("was told that it was not" in line for line in violations(story.history))


def test_an_answer_without_an_execution_breaks_i2(story: Story) -> None:
    story.call("a", 1)
    story.answers(story.sends(), "a", 2)
    assert story.found("I2")


def test_more_executions_than_accepted_requests_break_i2(story: Story) -> None:
    entry = story.history.sent("alice", "tools/call")
    story.answers(entry, "a", 2)
    assert story.found("I2")


def test_what_is_replayed_on_waking_is_no_second_execution(story: Story) -> None:
    story.answers(story.sends(kind="logging/setLevel"), "a", 1)
    story.told()
    story.answers(story.sends(), "b", 2)
    assert violations(story.history) == []


def test_a_second_answer_breaks_i3(story: Story) -> None:
    entry = story.call("a", 1)
    story.answers(entry, "a", 1)
    assert story.found("I3")


def test_a_request_without_an_outcome_breaks_i3_unless_its_client_hung_up(story: Story) -> None:
    entry = story.sends()
    assert story.found("I3")
    entry.left = True
    assert not story.found("I3")


def test_a_fresh_backend_that_nobody_was_told_of_breaks_i6(story: Story) -> None:
    story.call("a", 1)
    crashed = story.sends()
    story.fails(crashed, GONE)
    story.call("b", 1)
    assert story.found("I6")


def test_an_earlier_telling_does_not_cover_a_later_loss(story: Story) -> None:
    story.call("a", 1)
    story.told()
    story.call("b", 1)
    story.call("c", 1)
    assert story.found("I6")


def test_a_note_on_the_result_is_a_telling(story: Story) -> None:
    """`on_loss` annotate."""
    story.call("a", 1)
    entry = story.sends()
    story.runs(entry, "b", 1)
    facts = {"structuredContent": {"nonce": "b", "count": 1}, "_meta": {LOSS: {"reason": "idle"}}}
    story.history.answered(entry, {"id": 1, "result": facts})
    assert violations(story.history) == []


def test_a_telling_may_have_gone_to_a_client_that_hung_up(story: Story) -> None:
    story.call("a", 1)
    story.sends().left = True
    story.call("b", 1)
    assert violations(story.history) == []


def test_what_needs_no_state_may_be_answered_before_the_telling(story: Story) -> None:
    story.call("a", 1)
    entry = story.sends(kind="tools/list")
    story.runs(entry, "b", 1)
    story.answers(entry, "b", 1)
    story.told()
    story.call("b", 2)
    assert violations(story.history) == []


def test_a_counter_that_restarts_breaks_i6(story: Story) -> None:
    for count in (1, 2, 1):
        story.answers(story.history.sent("alice", "tools/call"), "a", count)
    assert story.found("I6")


def test_a_foreign_owner_who_sees_more_than_a_refusal_breaks_i7(story: Story) -> None:
    story.history.foreign.extend((401, 403, 404))
    assert violations(story.history) == []
    story.history.foreign.append(200)
    assert story.found("I7")


def test_the_ledger_is_read_from_its_file(story: Story, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    ledger.write_text(
        '{"nonce":"a","start":true}\n{"nonce":"a","count":1,"method":"tools/call","token":"t1"}\n'
    )
    story.history.take_ledger(ledger)
    assert story.history.executions == [Execution("a", 1, "tools/call", "t1")]


def test_a_history_survives_being_written_down(story: Story) -> None:
    story.call("a", 1)
    story.fails(story.sends(), GONE)
    story.call("b", 1)
    again = msgspec.json.decode(msgspec.json.encode(story.history), type=History)
    assert again == story.history
    assert violations(again) == violations(story.history) != []


@pytest.mark.parametrize("server", ["", "one"], ids=["of all", "of another one"])
def test_what_is_told_of_all_servers_is_told_of_each(story: Story, server: str) -> None:
    """Of one of them it says nothing of the others."""
    story.call("a", 1, "alice@two")
    story.told("alice", **({"server": server} if server else {}))
    story.call("b", 1, "alice@two")
    assert story.found("I6") == bool(server)
