"""The sealed notes: what they say, and who can read them."""

import anyio
import pytest

from sessionproxy.core.ports import Identity
from sessionproxy.eras.rounds import (
    CANONICAL,
    SEALED_FOR,
    Round,
    Rounds,
    digest_of,
    digest_of_answers,
)
from tests.core.fakes import KEY

ROUND = Round("r", "alice", "c:x", "life", 3, 2, "tools/call", "digest", 0.0)


class Wall:
    """A wall clock."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def rounds(wall: Wall | None = None, key: bytes = KEY) -> Rounds:
    return Rounds(key, wall or Wall())


def sealed(found: Rounds) -> str:
    return found.seal(ROUND._replace(expires=found.expiry()))


def test_a_note_says_what_it_was_sealed_with() -> None:
    found = rounds()
    read = found.read(sealed(found))
    assert read == ROUND._replace(expires=1e9 + SEALED_FOR)
    assert found.identity_of(sealed(found)) == Identity("r", "alice", "c:x")


def test_a_note_can_be_read_by_another_process_with_the_same_key_and_by_no_other() -> None:
    note = sealed(rounds())
    assert rounds().read(note) is not None
    assert rounds(key=b"o" * 32).read(note) is None


def test_a_note_tells_its_client_nothing() -> None:
    """It names a session, which is in no body (DESIGN 5.8)."""
    found = rounds()
    assert "alice" not in sealed(found)
    assert sealed(found) != sealed(found)


@pytest.mark.parametrize(
    "note", ["", "x", "v1.", "v1.AAAA", "v1.é", "v1.=", "v2.AAAA", "\0", "v1." + "A" * 100_000]
)
def test_what_is_no_note_is_none(note: str) -> None:
    assert rounds().read(note) is None
    assert rounds().identity_of(note) is None


def test_an_altered_note_is_none() -> None:
    found = rounds()
    note = sealed(found)
    for at in range(len(note)):
        other = "A" if note[at] != "A" else "B"
        assert found.read(note[:at] + other + note[at + 1 :]) is None
    assert found.read(note[:-1]) is None
    assert found.read(note + "A") is None


def test_a_note_that_says_something_else_is_none() -> None:
    """As one of a later version of the proxy might."""
    found = rounds()
    sealer = found._ready  # pyright: ignore[reportPrivateUsage] - there is no other way to seal it
    assert found.read(sealer.seal(b'["r","alice"]')) is None
    assert found.read(sealer.seal(b"\xff")) is None


def test_a_note_is_good_for_a_time_of_the_wall_clock() -> None:
    """FAULTS F41: requestState obeys wall time."""
    wall = Wall()
    found = rounds(wall)
    note = sealed(found)
    wall.now += SEALED_FOR - 1
    assert found.read(note) is not None
    wall.now += 2
    assert found.read(note) is None
    assert found.identity_of(note) is None


async def test_being_ready_is_prepared_beside_the_event_loop() -> None:
    found = rounds()
    with anyio.fail_after(60):
        await found.prepare()
    assert found.read(sealed(found)) is not None


def test_a_backends_own_state_is_carried_with_its_session() -> None:
    found = rounds()
    identity = Identity("r", "alice", "c:x")
    for state in ("theirs", "", None):
        note = found.carry(identity, state)
        assert found.identity_of(note) == identity
        assert found.carried(note) == state
    assert found.carried("anything else") == "anything else"
    assert found.carried(sealed(found)) != ROUND.key


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (b'{"name":"a"}', b'{ "name" : "\\u0061" }', True),
        (b'{"name":"a"}', b'{"name":"b"}', False),
        (b'{"name":"a"}', b'{"uri":"a"}', False),
        (b'{"name":"a"}', b'{"name":"a","arguments":{}}', False),
        (
            b'{"name":"a","arguments":{"x":1,"y":2}}',
            b'{"arguments":{"y":2,"x":1},"name":"a"}',
            True,
        ),
        (b'{"name":"a","arguments":{"x":[1,2]}}', b'{"name":"a","arguments":{"x":[2,1]}}', False),
        (b'{"name":"a","_meta":{"a":1}}', b'{"name":"a","_meta":{"b":1}}', True),
        (b'{"name":"a"}', b'{"name":"a","inputResponses":{},"requestState":"x"}', True),
        (b"{}", None, True),
    ],
)
def test_a_digest_is_of_what_a_request_is_about(one: bytes, other: bytes, same: bool) -> None:
    """2026-07-28 basic/patterns/mrtr#server-requirements: a digest of its salient parameters."""
    assert (digest_of(one) == digest_of(other)) is same


def test_large_arguments_count_as_they_were_written() -> None:
    large = b"x" * CANONICAL
    params = b'{"name":"a","arguments":{"y":1,"x":"%b"}}' % large
    assert digest_of(params) == digest_of(params.replace(b'"name"', b'"_meta":{},"name"'))
    assert digest_of(params) != digest_of(params.replace(b'"y":1,"x"', b'"y":2,"x"'))


def test_arguments_with_very_many_members_count_too() -> None:
    """They are not taken apart, and not left out either."""
    many = b",".join(b'"k%d":%d' % (number, number) for number in range(60_000))
    one = b'{"name":"a","arguments":{%b}}' % many
    assert digest_of(one) != digest_of(one.replace(b'"k7":7,', b'"k7":8,'))
    assert digest_of(one) != digest_of(one.replace(b'"a"', b'"b"'))


def test_arguments_nested_too_deep_to_read_do_no_harm() -> None:
    for depth in (900, 990, 1000, 1010, 30_000):
        deep = b"[" * depth + b"]" * depth
        assert digest_of(b'{"name":"a","arguments":%b}' % deep)


def test_a_number_that_is_out_of_range_counts_as_it_was_written() -> None:
    one = b'{"name":"a","arguments":{"x":1e999}}'
    assert digest_of(one) == digest_of(one.replace(b'"a"', b'"\\u0061"'))
    assert digest_of(one) != digest_of(one.replace(b"1e999", b"2e999"))


def test_the_digest_of_answers_is_of_keys_and_values() -> None:
    assert digest_of_answers({"a": b"1", "b": b"2"}) == digest_of_answers({"b": b"2", "a": b"1"})
    different = [{}, {"a": b"1"}, {"a": b"2"}, {"b": b"1"}, {"a": b"1", "b": b"2"}]
    assert len({digest_of_answers(answers) for answers in different}) == len(different)
    assert digest_of_answers({"a": b"1b\x002"}) != digest_of_answers({"a": b"1", "b": b"2"})
