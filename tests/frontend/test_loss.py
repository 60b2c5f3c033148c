"""DESIGN 7, `annotate`: the note that a result carries about lost state."""

import tracemalloc

import msgspec
import pytest

from sessionproxy.core.exchange import Exchange, Outcome
from sessionproxy.core.memory import Loss
from sessionproxy.core.state import StopReason
from sessionproxy.frontend.loss import Telling, annotated
from sessionproxy.frontend.problems import LOSS_KEY
from sessionproxy.frontend.reply import Reply
from sessionproxy.frontend.stream import Streams
from sessionproxy.wire.params import MANY

LOSS = Loss(100.0, StopReason.IDLE, 300.0, None)
NOTE = {"reason": "idle", "secondsAgo": 60.0}
MILLION = b'"structuredContent":{%b}' % b",".join(b'"k%07d":1' % n for n in range(2 * MANY))
"""Of members, or near enough."""


class Bereft:
    """A session that has lost its state."""

    loss: Loss | None = LOSS


def noted(result: bytes, *, tool: bool = True) -> bytes | None:
    return annotated(result, LOSS, 160.0, tool=tool)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    "members",
    [
        b'"content":[{"type":"x"}],"isError":false',
        b'"isError":false, "content" : [ ]',
        b'"content":[[1.50,"]"]],"_meta":{"a":[1.50]}',
        b'"_meta":{},"content":[]',
    ],
)
def test_a_tool_result_says_it_in_its_content_and_in_its_meta(members: bytes, large: bool) -> None:
    """DESIGN 7: the note is added; 5.4: the rest is what the backend sent."""
    result = b"{%b}" % (members + b"," + MILLION if large else members)
    before, after = msgspec.json.decode(result), msgspec.json.decode(noted(result) or b"null")
    text = after["content"].pop()
    assert text["type"] == "text"
    assert "state was lost 60 s ago (idle for 5 min)" in text["text"]
    assert after["_meta"].pop(LOSS_KEY) == NOTE
    assert after == {"_meta": {}, **before}


@pytest.mark.parametrize(
    ("result", "tool"),
    [
        (b'{"contents":[1]}', False),
        (b'{"content":[1]}', False),
        (b'{"content":"no list"}', True),
        (b"{}", True),
        (b"{ }", False),
        (b'{"_meta":null}', True),
        (b"{%b}" % MILLION, True),
    ],
)
def test_any_other_result_says_it_in_its_meta(result: bytes, tool: bool) -> None:
    """DESIGN 5.12: lost state is never silent, also where there is nothing else in a result."""
    after = msgspec.json.decode(noted(result, tool=tool) or b"null")
    assert after.pop("_meta") == {LOSS_KEY: NOTE}
    before = msgspec.json.decode(result)
    before.pop("_meta", None)
    assert after == before


def test_a_note_that_is_there_already_is_replaced() -> None:
    """A backend may be a proxy too."""
    after = msgspec.json.decode(noted(b'{"_meta":{"%b":{}}}' % LOSS_KEY.encode()) or b"null")
    assert after == {"_meta": {LOSS_KEY: NOTE}}


@pytest.mark.parametrize(
    "result", [b"[]", b'"text"', b"null", b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}"]
)
def test_a_result_without_a_place_for_a_note_has_none(result: bytes) -> None:
    """DESIGN 5.12: then it is not counted as told, and the next result is to say it."""
    assert noted(result) is None


async def test_only_a_reply_that_carries_a_note_says_that_it_does() -> None:
    """DESIGN 5.12: as long as none does, the loss is still to be told."""
    for result, noted_ in ((b"null", False), (b"{}", True)):
        reply, session = Reply(Streams(), expose_stderr=False), Bereft()
        reply.telling = telling = Telling(annotates=True)
        exchange = Exchange("tools/call", None, client_id=b"1", sink=reply)
        assert telling.instead(exchange, session, LOSS) is None  # it is run
        exchange.settle(Outcome(result=result))
        assert session.loss is LOSS  # until its client has the answer
        telling.written()
        assert (session.loss is None) is noted_
        assert (LOSS_KEY.encode() in (reply.body or b"")) is noted_
        assert noted_ or msgspec.json.decode(reply.body or b"")["result"] is None


def test_where_one_place_cannot_be_found_the_other_one_says_it() -> None:
    """FAULTS I8: what is large is not taken apart; its members are replaced where they stand."""
    alike = b'"a":%b,"%b":%b,"b":%b,' + MILLION
    meta = msgspec.json.decode(
        noted(b'{"_meta":{},%b}' % (alike % (b"[]", b"content", b"[]", b"[]"))) or b"null"
    )
    assert meta["_meta"] == {LOSS_KEY: NOTE}
    assert meta["content"] == []
    content = msgspec.json.decode(
        noted(b'{"content":[],%b}' % (alike % (b"{}", b"_meta", b"{}", b"{}"))) or b"null"
    )
    assert content["_meta"] == {}
    assert len(content["content"]) == 1


def test_neither_a_million_members_nor_a_million_items_are_taken_apart() -> None:
    """FAULTS I8: it would hold up everybody; counted in what is allocated."""
    result = b'{"content":[%b],%b}' % (b",".join([b"1"] * 10 * MANY), MILLION)
    tracemalloc.start()
    try:
        assert noted(result) is not None
        assert tracemalloc.get_traced_memory()[1] < 6 * len(result)
    finally:
        tracemalloc.stop()
