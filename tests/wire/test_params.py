import tracemalloc
from collections.abc import Callable
from functools import partial

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionproxy import wire
from sessionproxy.errors import InvalidMessage
from sessionproxy.wire.message import MAX_ID
from sessionproxy.wire.params import LARGE, MANY, carries_progress_token, with_progress_token

ESCAPED = b'{"_meta":{"\\u0070rogress\\u0054oken":7},"x":1}'


def json(data: bytes) -> object:
    return msgspec.json.decode(data)


@pytest.mark.parametrize("token", [b"7", b'"7"', b'"t\\u00e9"', b"-1", b"123456789012345678901"])
def test_a_progress_token_is_replaced_and_the_old_one_given_back(token: bytes) -> None:
    """2025-11-25 basic/utilities/progress: a string or an integer, chosen by the sender."""
    params = b'{"name":"t","_meta":{"progressToken":%b,"other":[1]},"arguments":{}}' % token
    found = with_progress_token(params, b"42")
    assert found is not None
    new, old, is_task = found
    assert old == token
    assert not is_task
    assert json(new) == {
        "name": "t",
        "_meta": {"progressToken": 42, "other": [1]},
        "arguments": {},
    }


def test_a_token_under_a_key_that_is_spelled_with_escapes_is_replaced_too() -> None:
    """RFC 8259, 7: any character may be escaped; the backend would read it as the same key."""
    assert carries_progress_token(ESCAPED)
    found = with_progress_token(ESCAPED, b"42")
    assert found is not None
    assert (json(found[0]), found[1]) == ({"_meta": {"progressToken": 42}, "x": 1}, b"7")


def test_a_meta_that_is_spelled_with_escapes_is_found_too() -> None:
    found = with_progress_token(b'{"\\u005fmeta":{"progressToken":7}}', b"42")
    assert found is not None
    assert json(found[0]) == {"_meta": {"progressToken": 42}}


@pytest.mark.parametrize(
    "params",
    [
        b"{}",
        b'{"progressToken":1}',
        b'{"_meta":{}}',
        b'{"_meta":[{"progressToken":1}]}',
        b'{"_meta":null}',
        b'{"arguments":{"_meta":{"progressToken":1}}}',
        b'{"x":"progressToken"}',
    ],
)
def test_a_token_elsewhere_than_in_meta_is_none(params: bytes) -> None:
    """2025-11-25 basic/utilities/progress: `params._meta.progressToken`."""
    assert with_progress_token(params, b"42") is None


def test_the_cheap_look_spares_params_without_a_token() -> None:
    """DESIGN 4, the hot way: most calls have none."""
    assert not carries_progress_token(b'{"name":"t","arguments":{"a":"\\n"}}')


@pytest.mark.parametrize(
    ("task", "is_task"), [(b'{"task":{"ttl":1},', True), (b'{"tasks":1,', False)]
)
def test_a_request_for_a_task_is_recognised(task: bytes, is_task: bool) -> None:
    """2025-11-25 basic/utilities/tasks#progress: its token outlives the request."""
    found = with_progress_token(task + b'"_meta":{"progressToken":1}}', b"42")
    assert found is not None
    assert found[2] is is_task


def test_progress_towards_the_client_is_taken_apart() -> None:
    found = wire.progress_of(b'{"progressToken":42,"progress":0.5,"total":1,"x":[]}')
    assert found is not None
    token, progress, fields = found
    assert (token, progress) == (42, 0.5)
    assert {name: bytes(value) for name, value in fields.items()} == {
        "progressToken": b"42",
        "progress": b"0.5",
        "total": b"1",
        "x": b"[]",
    }


@pytest.mark.parametrize(
    "params",
    [
        None,
        b"[]",
        b"null",
        b'{"progress":1}',
        b'{"progressToken":"42","progress":1}',
        b'{"progressToken":-42,"progress":1}',
        b'{"progressToken":4.2,"progress":1}',
        b'{"progressToken":null,"progress":1}',
        b'{"progressToken":42}',
        b'{"progressToken":42,"progress":"1"}',
        b'{"progressToken":42,"progress":"NaN"}',
        b'{"progressToken":42,"progress":null}',
        b'{"progressToken":%b,"progress":1}' % (b"1" * 5000),
    ],
)
def test_progress_without_a_token_of_ours_or_without_a_number_is_none(params: bytes | None) -> None:
    """FAULTS F34; our tokens are integers (5,000 digits: more than `int` reads)."""
    assert wire.progress_of(params) is None


@pytest.mark.parametrize(
    ("params", "named"),
    [
        (b'{"requestId":7,"reason":"r"}', b"7"),
        (b'{"requestId":"7"}', b'"7"'),
        (b"{}", None),
        (b"[7]", None),
        (None, None),
        (b'{"\\u0072equestId":7}', b"7"),
        (b'{"requestId":"%b"}' % (b"x" * MAX_ID), None),  # longer than any that was accepted
        (b'{"requestId":1,"x":' + b"[" * 2000 + b"]" * 2000 + b"}", None),
    ],
)
def test_a_cancellation_names_the_id_as_it_was_written(
    params: bytes | None, named: bytes | None
) -> None:
    """2025-11-25 basic/utilities/cancellation."""
    assert wire.cancelled_request_id(params) == named


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b'{"a":"x"}', "x"),
        (b'{"a":"\\u0078"}', "x"),
        (b'{"a":1}', None),
        (b'{"a":null}', None),
        (b"{}", None),
        (b"[]", None),
        (b"1", None),
    ],
)
def test_a_text_member_is_a_string_or_none(value: bytes, text: str | None) -> None:
    assert wire.text_member(value, "a") == text


def test_two_spellings_of_one_string_are_one_id_and_a_number_is_another() -> None:
    """FAULTS F32."""
    assert wire.id_value(b'"a"') == wire.id_value(b'"\\u0061"') == "a"
    assert wire.id_value(b"1") == 1
    assert wire.id_value(b'"1"') == "1"
    assert wire.id_value(b"1.5") is None
    assert wire.id_value(b"null") is None


def test_an_object_nested_as_deep_as_can_be_decoded_does_no_harm_in_a_deeper_frame() -> None:
    """FAULTS F11: what was decoded once is read again, further down the stack."""

    def deeper(frames: int, params: bytes) -> object:
        if frames:
            return deeper(frames - 1, params)
        return wire.members(params), wire.progress_of(params), wire.text_member(params, "a")

    for depth in range(900, 1000):
        params = b'{"progressToken":1,"progress":1,"a":' + b"[" * depth + b"]" * depth + b"}"
        assert deeper(50, params) is not None


def test_a_token_that_cannot_be_found_in_a_deeper_frame_is_not_passed_on() -> None:
    """FAULTS F34: it would be taken for one of ours when the backend reports progress."""

    def deeper(frames: int, params: bytes) -> bool:
        if frames:
            return deeper(frames - 1, params)
        try:
            found = with_progress_token(params, b"42")
        except InvalidMessage:
            return False
        assert found is not None
        return True

    found: set[bool] = set()
    for depth in range(1, 1000, 25):
        params = b'{"_meta":{"progressToken":1},"a":' + b"[" * depth + b"]" * depth + b"}"
        found.add(deeper(500, params))
    assert True in found


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=8), inner, max_size=4
        )
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(
    st.sampled_from(["_meta", "task", "name", "\u2028", "a\nb"]), JSON, max_size=5
)


@given(OBJECTS, st.booleans())
def test_rebuilt_members_are_the_object_they_came_from(value: object, indented: bool) -> None:
    """DESIGN 5.4: unknown members stay as they are."""
    encoded = msgspec.json.encode(value)
    if indented:
        encoded = msgspec.json.format(encoded, indent=2)
    assert json(wire.rebuilt(wire.members(encoded))) == json(encoded)


@given(OBJECTS, st.one_of(st.integers(), st.text(st.characters(exclude_categories=["Cs"]))))
def test_a_token_is_all_that_changes(value: dict[str, object], token: str | int) -> None:
    """DESIGN 5.4 and 5.11."""
    value["_meta"] = {"progressToken": token, "kept": [1, None]}
    found = with_progress_token(msgspec.json.encode(value), b"42")
    assert found is not None
    expected = {**value, "_meta": {"progressToken": 42, "kept": [1, None]}}
    assert json(found[0]) == json(msgspec.json.encode(expected))
    assert json(found[1]) == json(msgspec.json.encode(token))


# -- large ones ------------------------------------------------------------------------------------

FILLER = b"x" * LARGE


@pytest.mark.parametrize(
    "params",
    [
        b'{"_meta":{"progressToken":7},"x":"%b"}',
        b'{"x":"%b","_meta":{"progressToken":7}}',
        b'{"x":"%b", "_meta" : { "progressToken" : 7 , "other":[1]} , "y":{}}',
        b'{"_meta":{"progressToken":7},"x":"%b","y":{"_meta":{"progressToken":7}}}',
        b'{"y":{"_meta":{"progressToken":7}},"x":"%b","_meta":{"progressToken":7}}',
        b'{"\\u005fmeta":{"progressToken":7},"x":"%b","task":{}}',
    ],
)
def test_in_large_params_the_token_is_replaced_and_nothing_else(params: bytes) -> None:
    """DESIGN 5.4; FAULTS I8: without taking them apart."""
    params %= FILLER
    found = with_progress_token(params, b"42")
    assert found is not None
    new, old, is_task = found
    assert old == b"7"
    assert is_task == (b"task" in params)
    expected = msgspec.json.decode(params)
    expected["_meta"]["progressToken"] = 42
    assert json(new) == expected


@pytest.mark.parametrize(
    "params",
    [
        b'{"x":"%b"}',
        b'{"x":"%b","_meta":{}}',
        b'{"x":"%b","y":{"_meta":{"progressToken":7}}}',
        b'["%b"]',
    ],
)
def test_large_params_without_a_token_are_left_alone(params: bytes) -> None:
    assert with_progress_token(params % FILLER, b"42") is None


@pytest.mark.parametrize(
    "params",
    [
        b'{"a":{"progressToken":7},"_meta":{"progressToken":7},"b":{"progressToken":7},"x":"%b"}',
        b'{"_meta":{"progressToken":7,"x":"%b"}}',
    ],
)
def test_large_params_whose_token_cannot_be_replaced_are_refused(params: bytes) -> None:
    """DESIGN 5.11: the client's own token must not reach the backend."""
    with pytest.raises(InvalidMessage):
        with_progress_token(params % FILLER, b"42")


def object_of(count: int, *others: bytes) -> bytes:
    """Return an object of `count` small members and the given ones, in the middle."""
    small = [b'"k%07d":1' % number for number in range(count)]
    return b"{%b}" % b",".join((*small[: count // 2], *others, *small[count // 2 :]))


def peak_of(call: Callable[[], object]) -> int:
    """Return how many bytes `call` allocates at most."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


LOOKED_FOR = b'"requestId":7,"progressToken":7,"progress":1,"protocolVersion":"v"'


Look = Callable[[bytes], object]
LOOKS: list[tuple[Look, object]] = [
    (wire.cancelled_request_id, b"7"),
    (partial(wire.text_member, name="protocolVersion"), "v"),
    (partial(wire.text_member, name="progress"), None),
    (wire.members, {}),
    (wire.progress_of, None),
]


@pytest.mark.parametrize(("look", "found"), LOOKS)
def test_what_has_a_million_members_is_looked_into_and_not_taken_apart(
    look: Look, found: object
) -> None:
    """FAULTS I8: reading them would hold up everybody; counted in what is allocated."""
    params = object_of(4 * MANY, LOOKED_FOR)
    assert look(params) == found
    assert peak_of(lambda: look(params)) < len(params) // 100


def test_a_token_among_a_million_members_is_replaced_where_it_stands() -> None:
    """FAULTS I8, as above."""
    params = object_of(4 * MANY, b'"_meta":{"progressToken":7}')
    found = with_progress_token(params, b"42")
    assert found is not None
    assert msgspec.json.decode(found[0])["_meta"] == {"progressToken": 42}
    assert peak_of(lambda: with_progress_token(params, b"42")) < 5 * len(params)


def test_what_is_large_with_few_members_is_taken_apart() -> None:
    """DESIGN 5.4: nothing of it is lost, though its text may have a colon here and there."""
    params = b'{"progressToken":7,"progress":1,"message":"%b%b"}' % (FILLER, b":" * (MANY // 2))
    found = wire.progress_of(params)
    assert found is not None
    assert wire.rebuilt(found[2]) == params
    assert len(wire.members(params)) == 3


@pytest.mark.parametrize("value", [None, b"[]", b"1", b'{"b":1}', b"{" * 2000])
def test_a_member_of_what_has_none_such_is_none(value: bytes | None) -> None:
    assert wire.member(value, "a") is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"{}", b'{"a":2}'),
        (b'{"b":[1.50]}', b'{"b":[1.50],"a":2}'),
        (b'{"a":{},"b":1}', b'{"a":2,"b":1}'),
        (b'{"\\u0061":1}', b'{"a":2}'),
        (b"[]", None),
        (b"null", None),
        (b'{"a":1,"b":' + b"[" * 2000 + b"]" * 2000 + b"}", None),
    ],
)
def test_a_member_is_added_or_replaced(value: bytes, expected: bytes | None) -> None:
    """DESIGN 5.4: the others stay as they are."""
    assert wire.with_member(value, "a", b"2") == expected


@pytest.mark.parametrize(
    "others",
    [(), (b'"a":[1, {"a":0}]',), (b'"b":[1, {"a":0}]', b'"\\u0061" : [1, {"a":0}]')],
)
def test_among_a_million_members_one_is_added_or_replaced(others: tuple[bytes, ...]) -> None:
    """DESIGN 5.4, FAULTS I8: the others stay where they are."""
    value = object_of(2 * MANY, *others)
    changed = wire.with_member(value, "a", b"[2]")
    assert changed is not None
    assert json(changed) == {**msgspec.json.decode(value), "a": [2]}
    assert peak_of(lambda: wire.with_member(value, "a", b"[2]")) < 5 * len(value)


def test_a_member_that_cannot_be_told_from_its_like_is_not_replaced() -> None:
    value = object_of(2 * MANY, b'"b":[0]', b'"a":[0]', b'"c":[0]')
    assert wire.with_member(value, "a", b"[2]") is None


# -- taking a member out ---------------------------------------------------------------------------


def many(*, session: bytes, at: int) -> bytes:
    """An object with too many members to be taken apart, and one more among them."""
    fields = [b'"k%d": {"session": "x"}' % number for number in range(MANY + 10)]
    fields.insert(at, session)
    return b"{" + b",\n".join(fields) + b"}"


@pytest.mark.parametrize("name", ["session", 'a"b', "é"])
def test_a_member_is_taken_out_and_the_rest_stays(name: str) -> None:
    value = msgspec.json.encode({"x": 1.0, name: "h", "y": {name: "h"}})
    found = wire.without_member(value, name)
    assert found is not None
    assert json(found) == {"x": 1.0, "y": {name: "h"}}
    assert wire.without_member(b'{"session":null}', "session") == b"{}"


@pytest.mark.parametrize("value", [b"{}", b"[]", b"5", b'{"x":{"session":"h"}}'])
def test_what_is_not_there_cannot_be_taken_out(value: bytes) -> None:
    assert wire.without_member(value, "session") is None


@pytest.mark.parametrize(
    ("value", "at"), [("h", 0), ("h", 1), ("h", MANY), ("h", MANY + 10), ("x", 0), ("x", MANY + 10)]
)
def test_a_member_among_a_great_many_is_cut_out_where_it_stands(value: str, at: int) -> None:
    """Others of that name stand in every other member, and the value may do so, too."""
    whole = many(session=b'"session" :\t"%b" ' % value.encode(), at=at)
    found = wire.without_member(whole, "session")
    assert found is not None
    assert len(whole) > LARGE
    assert json(found) == {f"k{number}": {"session": "x"} for number in range(MANY + 10)}


def test_a_member_that_is_hidden_among_its_likes_is_not_cut_out() -> None:
    """`_exchanged` looks at the first and the last; a wrong one is never cut out."""
    assert wire.without_member(many(session=b'"session":"x"', at=MANY // 2), "session") is None


def test_a_member_whose_name_is_spelled_with_escapes_is_not_cut_out() -> None:
    """Rather refused than passed on to the backend."""
    assert wire.without_member(many(session=b'"\\u0073ession":"h"', at=5), "session") is None
    small = b'{"\\u0073ession":"h","x":1}'
    assert wire.without_member(small, "session") == b'{"x":1}'
