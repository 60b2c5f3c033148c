"""What a modern request says of itself: read, taken off, put on."""

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sessionproxy.errors import InvalidMessage
from sessionproxy.wire import Envelope
from sessionproxy.wire.envelope import (
    CAPABILITIES_KEY,
    CLIENT_KEY,
    ENVELOPE_KEYS,
    LOG_LEVEL_KEY,
    LOG_LEVELS,
    RETRY_KEYS,
    VERSION_KEY,
    Likeness,
    progress_token,
    read_meta,
    read_request,
    severity,
    text,
    with_envelope,
    without_envelope,
)

Json = dict[str, object]

META: Json = {
    VERSION_KEY: "2026-07-28",
    CAPABILITIES_KEY: {"roots": {}},
    CLIENT_KEY: {"name": "c"},
    LOG_LEVEL_KEY: "info",
}
ENVELOPE = Envelope("2026-07-28", b'{"roots":{}}', b'{"name":"c"}', "info")

DEEP = b"[" * 100_000 + b"]" * 100_000


def decoded(value: bytes | None) -> Json:
    return msgspec.json.decode(value or b"null", type=Json)


# -- reading ---------------------------------------------------------------------------------------


def test_what_a_request_says_is_found() -> None:
    """2026-07-28 basic#_meta."""
    found = read_request(
        msgspec.json.encode(
            {
                "name": "n",
                "uri": "u",
                "_meta": META,
                "requestState": "s",
                "inputResponses": {"k": 1},
            }
        )
    )
    assert found.meta is not None
    assert decoded(found.meta) == META
    meta = read_meta(found.meta)
    assert text(meta.version) == "2026-07-28"
    assert bytes(meta.capabilities or b"") == b'{"roots":{}}'
    assert bytes(meta.client or b"") == b'{"name":"c"}'
    assert text(meta.log_level) == "info"
    assert (found.name, found.uri, text(found.state)) == ("n", "u", "s")
    assert bytes(found.responses or b"") == b'{"k":1}'


@pytest.mark.parametrize(
    "params", [None, b"{}", b'{"_meta":null}', b'{"_meta":[]}', b'{"_meta":"x"}', b"[]", b"7"]
)
def test_what_is_not_said_is_none(params: bytes | None) -> None:
    found = read_request(params)
    assert found == (None,) * 5
    assert read_meta(found.meta) == (None,) * 4


def test_what_is_of_the_wrong_kind_is_there_to_be_refused() -> None:
    found = read_request(b'{"name":1,"_meta":{"%b":7},"requestState":[]}' % VERSION_KEY.encode())
    meta = read_meta(found.meta)
    assert bytes(meta.version or b"") == b"7"
    assert text(meta.version) is None
    assert (found.name, text(found.state)) == (None, None)


def test_what_is_nested_too_deep_is_refused() -> None:
    """FAULTS F11."""
    with pytest.raises(InvalidMessage):
        read_request(b'{"arguments":%b}' % DEEP)


# -- capabilities and levels -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "path", "declares"),
    [
        (b'{"roots":{}}', ("roots",), True),
        (b'{"roots":null}', ("roots",), False),
        (b"{}", ("roots",), False),
        (b'{"elicitation":{"url":{}}}', ("elicitation", "url"), True),
        (b'{"elicitation":{"url":null}}', ("elicitation", "url"), False),
        (b'{"elicitation":{}}', ("elicitation", "url"), False),
        (b'{"elicitation":7}', ("elicitation", "url"), False),
        (b"[]", ("roots",), False),
    ],
)
def test_a_capability_is_declared_or_not(
    capabilities: bytes, path: tuple[str, ...], declares: bool
) -> None:
    assert Envelope("", capabilities).declares(*path) is declares


def test_levels_are_in_the_order_of_the_rfc() -> None:
    """RFC 5424, section 6.2.1; one that nobody knows may be important."""
    assert [severity(level) for level in LOG_LEVELS] == list(range(8))
    assert severity("made-up") > severity("emergency")


def test_a_request_without_a_level_hears_nothing() -> None:
    """2026-07-28 server/utilities/logging#per-request-log-level."""
    silent, loud = Envelope("", b"{}"), Envelope("", b"{}", log_level="warning")
    assert not any(silent.hears(level) for level in LOG_LEVELS)
    assert [level for level in LOG_LEVELS if loud.hears(level)] == list(LOG_LEVELS[3:])


@pytest.mark.parametrize(
    ("params", "token"),
    [
        (None, None),
        (b"{}", None),
        (b'{"_meta":{}}', None),
        (b'{"_meta":[]}', None),
        (b'{"_meta":{"progressToken":7}}', b"7"),
        (b'{"_meta":{"progressToken":"t"}}', b'"t"'),
        (b'{"a":%b,"_meta":{"progressToken":7}}' % DEEP, None),
    ],
)
def test_a_token_is_found_where_there_is_one(params: bytes | None, token: bytes | None) -> None:
    assert progress_token(params) == token


@pytest.mark.parametrize("token", [None, b"7", b'"t"'])
def test_a_token_is_found_in_a_meta_that_is_known(token: bytes | None) -> None:
    meta = b"{}" if token is None else b'{"progressToken":%b}' % token
    assert progress_token(b'{"_meta":%b}' % meta, meta) == token


# -- taking it off and putting it on ---------------------------------------------------------------


def test_what_the_revision_added_is_taken_off_and_nothing_else() -> None:
    params: Json = {
        "name": "n",
        "more": [1],
        "_meta": {**META, "traceparent": "00", "progressToken": 1},
        "requestState": "s",
        "inputResponses": {},
    }
    assert decoded(without_envelope(msgspec.json.encode(params))) == {
        "name": "n",
        "more": [1],
        "_meta": {"traceparent": "00", "progressToken": 1},
    }


def test_an_empty_meta_is_taken_off_too() -> None:
    assert without_envelope(b'{"name":"n","_meta":{}}') == b'{"name":"n"}'
    assert without_envelope(None) is None
    assert without_envelope(b"{}") == b"{}"


def test_the_envelope_is_put_on() -> None:
    params = b'{"name":"n","_meta":{"progressToken":1,"%b":"old"}}' % VERSION_KEY.encode()
    assert decoded(with_envelope(params, ENVELOPE)) == {
        "name": "n",
        "_meta": {"progressToken": 1, **META},
    }
    assert decoded(with_envelope(None, ENVELOPE)) == {"_meta": META}
    least = decoded(with_envelope(b"{}", Envelope("v", b"{}")))
    assert least == {"_meta": {VERSION_KEY: "v", CAPABILITIES_KEY: {}}}


@pytest.mark.parametrize("params", [b"[]", b"7", b'{"a":%b}' % DEEP])
def test_there_is_no_putting_it_on_what_cannot_be_written_into(params: bytes) -> None:
    with pytest.raises(InvalidMessage):
        with_envelope(params, ENVELOPE)


def test_large_parameters_keep_all_of_their_very_many_members() -> None:
    """They are not taken apart, and not left out either."""
    many = {f"k{number}": number for number in range(60_000)}
    params: Json = {"name": "n", "arguments": many, "_meta": {"progressToken": 1}}
    put_on = with_envelope(msgspec.json.encode(params), ENVELOPE)
    assert decoded(put_on) == {**params, "_meta": {"progressToken": 1, **META}}
    assert decoded(without_envelope(put_on)) == params
    bare: Json = {"name": "n", "arguments": many}
    assert decoded(with_envelope(msgspec.json.encode(bare), ENVELOPE)) == {**bare, "_meta": META}
    assert decoded(without_envelope(msgspec.json.encode(bare))) == bare


def test_parameters_nested_too_deep_to_look_into_go_on_as_they_are() -> None:
    params = b'{"a":%b}' % DEEP
    assert without_envelope(params) == params


names = st.sampled_from(["name", "uri", "arguments", "_meta", "other", "é"])
values = st.recursive(
    st.sampled_from([None, True, 0, 1.5, "", 'q"\\u2028', "_meta"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=5,
)
metas = st.dictionaries(st.sampled_from(["a", "progressToken", "io.x/y"]), values, max_size=2)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(params=st.dictionaries(names, values, max_size=4), meta=metas | st.none())
def test_what_is_put_on_comes_off_again(params: Json, meta: Json | None) -> None:
    """DESIGN 5.4."""
    params.pop("_meta", None)
    if meta:
        params["_meta"] = meta
    put_on = with_envelope(msgspec.json.encode(params), ENVELOPE)
    found = msgspec.convert(decoded(put_on)["_meta"], Json)
    assert {key: found[key] for key in ENVELOPE_KEYS} == META
    assert decoded(without_envelope(put_on)) == params
    retried = msgspec.json.encode({**decoded(put_on), **dict.fromkeys(RETRY_KEYS, Json())})
    assert decoded(without_envelope(retried)) == params


METAS = (
    msgspec.json.encode(META),
    msgspec.json.encode({**META, "progressToken": 1}),
    b'{"progressToken":"t"}',
    b"{}",
    b'{"a":"}"}',
)


@given(st.sampled_from(METAS), st.integers(0, 3), st.data())
def test_it_is_taken_off_the_same_wherever_it_stands(
    meta: bytes, at: int, data: st.DataObject
) -> None:
    """Also where the same bytes stand deeper, in a string, or with other spaces around them."""
    nested = b'{"_meta":%b,"b":{"_meta":%b}}' % (meta, meta)
    quoted = msgspec.json.encode(',"_meta":' + meta.decode() + "}")
    value = data.draw(st.sampled_from([b"1", b"{}", nested, quoted]))
    colon = data.draw(st.sampled_from([b":", b" : "]))
    fields = [b'"name":"n"', b'"arguments":' + value, b'"x":' + value]
    fields.insert(at, b'"_meta"' + colon + meta)
    params = b"{" + b",".join(fields) + b"}"
    assert decoded(without_envelope(params, meta)) == decoded(without_envelope(params))


def test_requests_are_alike_whatever_their_arguments() -> None:
    """And only if they answer nothing, for one that does is another request."""
    first = b'{"name":"n","arguments":1,"_meta":{"a":1}}'
    assert Likeness(first).holds(b'{"arguments":{"b":2},"_meta":{"a":1},"name":"n"}')
    for other in (
        None,
        b'{"name":"m","_meta":{"a":1}}',
        b'{"uri":"n","_meta":{"a":1}}',
        b'{"name":"n","uri":"n","_meta":{"a":1}}',
        b'{"name":"n","_meta":{"a":2}}',
        b'{"name":"n"}',
        b'{"name":"n","_meta":{"a":1},"requestState":"s"}',
        b'{"name":"n","_meta":{"a":1},"inputResponses":{}}',
    ):
        assert not Likeness(first).holds(other), other
