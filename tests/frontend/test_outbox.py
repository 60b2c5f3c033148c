"""What waits for a client with one channel: DESIGN 5.3, FAULTS F29 and F30."""

import json

import anyio
import pytest

from sessionproxy.core.exchange import Ask, Outbound, Outcome
from sessionproxy.errors import BackendBusy
from sessionproxy.frontend.channel import Channel
from sessionproxy.frontend.outbox import CROWDED_BYTES, Outbox
from sessionproxy.frontend.stream import KEPT_BYTES

LARGE = b"x" * 100_000
LIMIT = 5_000_000


def lines() -> Outbox:
    return Outbox(lambda message: message + b"\n", answers=LIMIT)


def rest(outbox: Outbox) -> list[bytes]:
    """Read all that waits."""
    found = b""
    while chunk := outbox.take():
        found += chunk
    return found.splitlines()


async def test_everything_comes_out_once_and_in_order() -> None:
    """DESIGN 5.3."""
    outbox = lines()
    outbox.put(Outbound(b"1"))
    outbox.answer(b"2")
    outbox.put(Outbound(b"3", droppable=True))
    assert rest(outbox) == [b"1", b"2", b"3"]
    assert rest(outbox) == []
    assert outbox.size == 0


async def test_a_message_is_one_line_whatever_it_came_as() -> None:
    """2025-11-25 basic/transports#stdio: no embedded newlines; U+2028 is one to Node."""
    outbox = lines()
    outbox.answer('{\n"a": "\u2028"\r\n}'.encode())
    assert rest(outbox) == [b'{ "a": "\\u2028"  }']


async def test_the_oldest_that_may_be_dropped_go_first_and_the_client_is_told_how_many() -> None:
    """FAULTS F29. Answers and questions stay where they were."""
    outbox = lines()
    outbox.put(Outbound(b"question"))
    for n in range(2 * KEPT_BYTES // len(LARGE)):
        outbox.put(Outbound(b"%d " % n + LARGE, droppable=True))
    outbox.answer(b"answer")
    assert outbox.size < 2 * KEPT_BYTES
    note, question, *dropped, answer = rest(outbox)
    assert (question, answer) == (b"question", b"answer")
    numbers = [int(line.split()[0]) for line in dropped]
    assert numbers == list(range(outbox.dropped, 2 * KEPT_BYTES // len(LARGE)))
    assert json.loads(note)["params"]["data"] == (
        f"{outbox.dropped} messages were dropped: not read in time"
    )


async def test_who_can_be_told_nothing_unasked_is_not_told() -> None:
    """2026-07-28 server/utilities/logging: only what a request asked for."""
    outbox = lines()
    outbox.tells = False
    for _ in range(2 * KEPT_BYTES // len(LARGE)):
        outbox.put(Outbound(LARGE, droppable=True))
    assert outbox.dropped
    assert set(rest(outbox)) == {LARGE}


async def test_a_long_answer_in_front_costs_no_notification() -> None:
    """DESIGN 5.3: none is dropped while its reader keeps up, and this one is being read."""
    outbox = lines()
    outbox.answer(b"x" * (LIMIT - 1000))
    for n in range(100):
        outbox.put(Outbound(b"%d" % n, droppable=bool(n % 2)))
    assert len(rest(outbox)) == 101
    assert outbox.dropped == 0


@pytest.mark.parametrize("what", ["answers", "questions"])
async def test_a_client_that_leaves_the_rest_lying_is_cut_off(what: str) -> None:
    """DESIGN 5.3: nothing more is kept for it, and whoever owns it is told, but not at once."""
    outbox = lines()
    cut = anyio.Event()
    outbox.on_cut = cut.set
    for _ in range(2 * LIMIT // len(LARGE)):
        if what == "answers":
            outbox.answer(LARGE)
        else:
            outbox.put(Outbound(LARGE))
    assert outbox.ended
    assert outbox.over()
    assert outbox.size == 0
    assert not cut.is_set()
    with anyio.fail_after(5):
        await cut.wait()


async def test_an_answer_is_written_once_more_is_taken() -> None:
    """What a reader takes next, it takes once the last was written."""
    outbox = lines()
    written: list[str] = []
    outbox.answer(b"1", lambda: written.append("1"))
    outbox.take()
    assert written == []
    outbox.take()
    assert written == ["1"]


async def test_a_client_is_heard_again_once_it_has_read() -> None:
    """DESIGN 5.3; what is being written counts until it is written."""
    outbox = lines()
    outbox.answer(b"x" * (2 * CROWDED_BYTES))
    heard = anyio.Event()

    async def hear() -> None:
        await outbox.room()
        heard.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hear)
        outbox.take()
        await anyio.wait_all_tasks_blocked()
        assert not heard.is_set()
        outbox.take()
        with anyio.fail_after(5):
            await heard.wait()


async def test_after_its_end_what_waits_is_read_and_nothing_is_added() -> None:
    """DESIGN 5.3: answers that were given reach the client."""
    outbox = lines()
    outbox.answer(b"1")
    outbox.end()
    outbox.answer(b"2")
    assert not outbox.over()
    assert rest(outbox) == [b"1"]
    assert outbox.over()
    await outbox.wait()


async def test_what_a_client_that_has_gone_is_asked_waits_for_no_room_at_the_backend() -> None:
    """FAULTS F16: nobody tries again, and the reading of the backend goes on."""
    outbox, answers = lines(), list[Outcome]()

    def busy(outcome: Outcome) -> None:
        if not isinstance(outcome.failure, BackendBusy):
            raise BackendBusy("It does not read.")
        answers.append(outcome)

    outbox.end()
    ask = Ask("roots/list", None, busy)
    Channel(outbox).message(Outbound(b"{}", ask=ask))
    assert (len(answers), ask.waits) == (1, False)
