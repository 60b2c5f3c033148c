"""Results and errors as a modern client expects them: the backend's own, and what was added."""

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sessionproxy.eras.results import (
    input_required,
    modern_error,
    modern_result,
    urls_of,
)
from sessionproxy.wire.envelope import SERVER_KEY

SERVER = b'{"name":"s","version":"1"}'

Json = dict[str, object]

anything = st.recursive(
    st.sampled_from([None, True, 0, -7, "", "a", 'q"\\é\u2028', "resultType"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["resultType", "_meta", "ttlMs", "cacheScope", "x", SERVER_KEY]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
objects = st.dictionaries(
    st.sampled_from(["resultType", "_meta", "ttlMs", "cacheScope", "content", "y"]), anything
)


def modern(result: bytes, method: str = "tools/call", server: bytes | None = SERVER) -> Json:
    return msgspec.json.decode(modern_result(result, method, server), type=Json)


def test_what_the_revision_requires_is_put_on() -> None:
    """2026-07-28 basic#results; server/utilities/caching."""
    assert modern(b'{"content":[]}') == {
        "resultType": "complete",
        "_meta": {SERVER_KEY: {"name": "s", "version": "1"}},
        "content": [],
    }
    read = modern(b"{}", "resources/read", None)
    assert read == {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}


@pytest.mark.parametrize("result", [b"{}", b"{ }", b' {"a":1}', b'{\n"a":1}'])
def test_white_space_makes_no_difference(result: bytes) -> None:
    assert modern(result, server=None) == {"resultType": "complete", **msgspec.json.decode(result)}


def test_a_result_that_is_no_object_is_left_alone() -> None:
    assert modern_result(b"[1]", "tools/call", SERVER) == b"[1]"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    result=objects,
    spelled=st.booleans(),
    known=st.booleans(),
    method=st.sampled_from(["tools/call", "resources/read"]),
)
def test_what_the_backend_wrote_stays(
    result: Json, spelled: bool, known: bool, method: str
) -> None:
    """DESIGN 5.4: content, structuredContent, `_meta`, unknown fields; wherever the names stand,
    and however they are spelled."""
    encoded = msgspec.json.encode(result)
    if spelled:
        encoded = encoded.replace(b"resultType", b"result\\u0054ype").replace(
            b"_meta", b"\\u005fmeta"
        )
    found = modern(encoded, method, SERVER if known else None)
    assert found.pop("resultType") == "complete"
    expected = {key: value for key, value in result.items() if key != "resultType"}
    if method == "resources/read":
        expected = {"ttlMs": 0, "cacheScope": "private", **expected}
    if known:
        meta = expected.get("_meta")
        expected["_meta"] = {
            SERVER_KEY: {"name": "s", "version": "1"},
            **(meta if isinstance(meta, dict) else {}),
        }
    assert found == expected


@pytest.mark.parametrize("inside", [b'"_meta":{"a":1},', b'"resultType":"x",', b'"ttlMs":5,', b""])
def test_a_large_result_with_very_many_members_keeps_all_of_them(inside: bytes) -> None:
    """It is not taken apart, and not left out either."""
    many = b",".join(b'"k%d":"a:\\u00e9"' % number for number in range(60_000))
    result = b'{%b"structuredContent":{%b},"content":[{"_meta":{}}]}' % (inside, many)
    found = modern(result, "resources/read")
    before: Json = msgspec.json.decode(result)
    assert found["structuredContent"] == before["structuredContent"]
    assert found["content"] == before["content"]
    assert found["resultType"] == "complete"
    assert found["ttlMs"] == before.get("ttlMs", 0)
    assert found["_meta"] == {**before.get("_meta", {}), SERVER_KEY: {"name": "s", "version": "1"}}  # pyright: ignore[reportGeneralTypeIssues]


def test_a_result_nested_too_deep_to_look_into_is_passed_on() -> None:
    deep = b"[" * 50_000 + b"]" * 50_000
    found = modern_result(b'{"a":%b,"_meta":{}}' % deep, "tools/call", SERVER)
    assert deep in found


def test_questions_are_a_result_that_asks_for_input() -> None:
    """2026-07-28 basic/patterns/mrtr#inputrequiredresult."""
    found = input_required({"k": msgspec.Raw(b'{"method":"roots/list"}')}, 'st"te', SERVER)
    assert msgspec.json.decode(found) == {
        "resultType": "input_required",
        "inputRequests": {"k": {"method": "roots/list"}},
        "requestState": 'st"te',
        "_meta": {SERVER_KEY: {"name": "s", "version": "1"}},
    }
    assert "_meta" not in msgspec.json.decode(input_required({}, "", None))


def test_a_resource_that_is_not_found_has_the_code_of_the_revision() -> None:
    """2026-07-28 server/resources#error-handling; data and unknown fields stay (DESIGN 5.4)."""
    error = b'{"code":-32002,"message":"no","data":{"uri":"x"},"more":1}'
    found = msgspec.json.decode(modern_error(error, "resources/read", visits=True))
    assert found == {"code": -32602, "message": "no", "data": {"uri": "x"}, "more": 1}


@pytest.mark.parametrize(
    ("error", "visits", "expected"),
    [
        (b'{"code":-32002,"message":"m"}', True, {"code": -32603}),
        (b'{"code":-32042,"message":"m"}', True, {"code": -32603}),
        (
            b'{"code":-32042,"message":"m","data":[1]}',
            False,
            {"code": -32021, "data": {"requiredCapabilities": {"elicitation": {"url": {}}}}},
        ),
    ],
)
def test_a_code_that_must_not_be_emitted_any_more_is_none(
    error: bytes, visits: bool, expected: dict[str, object]
) -> None:
    """2026-07-28 basic#error-codes."""
    found = msgspec.json.decode(modern_error(error, "tools/call", visits=visits))
    assert found == {"message": "m", **expected}


@pytest.mark.parametrize(
    ("error", "method"),
    [
        (b'{"code":-32001,"message":"no"}', "resources/read"),
        (b'{"code":"x"}', "resources/read"),
        (b"7", "resources/read"),
    ],
)
def test_other_errors_stay_as_they_were_written(error: bytes, method: str) -> None:
    assert modern_error(error, method, visits=False) == error


@pytest.mark.parametrize(
    ("error", "urls"),
    [
        (b'{"code":-32042,"data":{"elicitations":[{"url":"a"},{"url":"b"}]}}', 2),
        (b'{"code":-32042,"data":{"elicitations":[]}}', 0),
        (b'{"code":-32042,"data":{"elicitations":["a"]}}', 0),
        (b'{"code":-32042,"data":{"elicitations":7}}', 0),
        (b'{"code":-32042,"data":[]}', 0),
        (b'{"code":-32042}', 0),
        (b'{"code":-32043,"data":{"elicitations":[{"url":"a"}]}}', 0),
        (b"[]", 0),
    ],
)
def test_places_to_go_are_named_by_one_error_alone(error: bytes, urls: int) -> None:
    """2025-11-25 client/elicitation#url-mode-with-elicitation-required-error."""
    assert len(urls_of(error)) == urls
