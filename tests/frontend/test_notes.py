"""What is noted on a result: found in `_meta`, and nothing else of it changed (DESIGN 5.4)."""

import json
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionproxy.frontend.notes import Note, about, noted
from tests.rig.http import Json

KEY = "sessionproxy/session"
NOTE = Note(about(idle=60, default=True))
TOLD: Json = {"default": True, "idleTimeout": 60}
DRESSED = '{"resultType":"complete","_meta":'


def single(pairs: list[tuple[str, object]]) -> Json:
    """Fail on a member that is there twice, which readers understand differently."""
    assert len({name for name, _ in pairs}) == len(pairs), pairs
    return dict(pairs)


def read(result: object) -> Json:
    return json.loads(bytes(result), object_pairs_hook=single)  # type: ignore[call-overload] # it is Bytes


@pytest.mark.parametrize(
    "result",
    [
        "{}",
        "{ }",
        '{"a":1}',
        '{"_meta":{}}',
        '{"_meta":{"a":1},"content":[]}',
        DRESSED + '{"s":{"name":"x"}},"content":[]}',
        DRESSED + '{"s":1,"sessionproxy/session":{"of":"another proxy"}}}',
        DRESSED + '{"s":1,"sessionproxy\\u002fsession":{"of":"another proxy"}}}',
        DRESSED + '{"s":1},"content":[{"text":"\\u00e4 \\"_meta\\""}]}',
        DRESSED + "{}}",
        DRESSED + "null}",
        '{"resultType":"complete","content":["_meta"]}',
        '{"_met\\u0061":{"a":1}}',
        '{"content":[{"_meta":{"a":1}}]}',
    ],
)
def test_a_note_stands_in_meta_once_and_the_rest_stays(result: str) -> None:
    """However the result was written."""
    before = json.loads(result)
    after = read(noted(result.encode(), NOTE, tool=False))
    meta: Json = before.get("_meta") or {}
    assert after == {**before, "_meta": {**meta, KEY: TOLD}}


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["_meta", KEY, "a", "content"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["_meta", "resultType", "content", KEY]), plain))
def test_any_result_has_it(before: Json) -> None:
    """Where its `_meta` is no object, the note takes its place."""
    after = read(noted(msgspec.json.encode(before), NOTE, tool=False))
    meta: object = before.get("_meta")
    kept = cast("Json", meta) if isinstance(meta, dict) else {}
    assert after == {**before, "_meta": {**kept, KEY: TOLD}}


def test_a_text_goes_to_the_end_of_a_tools_content_alone() -> None:
    """DESIGN 6: one short text item; there is no place for it elsewhere."""
    note = NOTE._replace(text="hello")
    result = b'{"content":[{"type":"text","text":"x"}]}'
    texts = [item["text"] for item in read(noted(result, note, tool=True))["content"]]
    assert texts == ["x", "hello"]
    for other, tool in ((result, False), (b'{"content":"x"}', True), (b"{}", True)):
        found = read(noted(other, note, tool=tool))
        assert found == {**json.loads(other), "_meta": {KEY: TOLD}}


def test_what_there_is_nothing_to_say_of_stays_as_it_is() -> None:
    """Byte for byte."""
    result = b'{ "a" : 1.0 }'
    assert noted(result, Note(about(idle=None)), tool=True) == result


def test_a_state_is_carried_by_a_question_and_by_nothing_else() -> None:
    """2026-07-28 basic/patterns/mrtr: `requestState` may be missing; it must not be then."""

    def carry(state: str | None) -> str:
        return f"<{state}>"

    note = NOTE._replace(carry=carry)
    for result, state in (
        (b'{"resultType":"input_required","requestState":"s"}', "<s>"),
        (b'{"resultType":"input_required"}', "<None>"),
        (b'{"resultType":"complete","requestState":"s","a":"input_required"}', "s"),
    ):
        assert read(noted(result, note, tool=True))["requestState"] == state
