import json as stdlib_json
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from sessionproxy import wire
from sessionproxy.errors import InvalidMessage, MalformedMessage
from sessionproxy.wire import Kind
from sessionproxy.wire.message import MAX_BATCH, MAX_ID

HEAD = b'{"jsonrpc":"2.0",'


def request_with_id(encoded: bytes) -> wire.Message:
    return wire.decode(HEAD + b'"id":%b,"method":"ping"}' % encoded)


# -- decoding --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "kind"),
    [
        (b'"id":1,"method":"ping"}', Kind.REQUEST),
        (b'"id":"a","method":"x/y","params":{"a":1}}', Kind.REQUEST),
        (b'"method":"notifications/initialized"}', Kind.NOTIFICATION),
        (b'"id":1,"result":{}}', Kind.RESPONSE),
        (b'"id":1,"result":null}', Kind.RESPONSE),
        (b'"id":1,"error":{"code":1,"message":"m"}}', Kind.RESPONSE),
        (b'"id":null,"error":{"code":1,"message":"m"}}', Kind.RESPONSE),
        (b'"id":1,"method":"ping","unknown":[1,{"a":"b"}]}', Kind.REQUEST),
    ],
)
def test_the_members_of_an_envelope_tell_what_it_is(rest: bytes, kind: Kind) -> None:
    """JSON-RPC 2.0, sections 4 and 5; DESIGN 5.4: unknown members are no fault."""
    assert wire.decode(HEAD + rest).kind is kind


@pytest.mark.parametrize(
    "rest",
    [
        b'"id":1}',
        b'"id":1,"result":{},"error":{}}',
        b'"result":{}}',
        b'"error":{}}',
        b'"params":{}}',
        b'"id":1,"method":"ping","result":{}}',
        b'"id":1,"method":"ping","error":{}}',
    ],
)
def test_an_envelope_that_is_none_of_the_three_is_refused(rest: bytes) -> None:
    """JSON-RPC 2.0, sections 4 and 5."""
    message = wire.decode(HEAD + rest)
    with pytest.raises(InvalidMessage):
        _ = message.kind


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"null",
        b"1",
        b'"text"',
        b"[]",
        b'[{"jsonrpc":"2.0","method":"ping","id":1}]',
        b'{"method":"ping","id":1}',
        b'{"jsonrpc":"1.0","method":"ping","id":1}',
        b'{"jsonrpc":2.0,"method":"ping","id":1}',
        b'{"jsonrpc":"2.0","method":7,"id":1}',
        b'{"jsonrpc":"2.0","method":null,"id":1}',
    ],
)
def test_json_that_is_no_message_is_invalid(body: bytes) -> None:
    """JSON-RPC 2.0, section 5.1: -32600; FAULTS F11: a batch is not taken for a message."""
    with pytest.raises(InvalidMessage):
        wire.decode(body)


@pytest.mark.parametrize(
    "params",
    [
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":"\xff"}',
        b'{"a":"\xc3"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\xf4\x90\x80\x80"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\udc00"}',
        b'{"a":"\\udc00\\ud800"}',
        b'{"\\ud800":1}',
        b'{"a":"\x00"}',
        b'{"a":"\n"}',
        b'{"a":"\\x41"}',
        b'{"a":01}',
        b'{"a":1}garbage',
        b'{"a":1',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    ],
    ids=lambda params: repr(params[:16]),
)
def test_what_is_no_json_is_refused_also_where_it_is_not_looked_into(params: bytes) -> None:
    """FAULTS F11: nothing that a peer could choke on is passed on as it is."""
    for name in (b"params", b"result", b"unknown"):
        with pytest.raises(MalformedMessage):
            wire.decode(HEAD + b'"id":1,"method":"x","' + name + b'":' + params + b"}")


@pytest.mark.parametrize("body", [b"", b" ", b"\xef\xbb\xbf{}", b"GET / HTTP/1.1", b"\x00"])
def test_what_is_no_json_at_all_is_malformed(body: bytes) -> None:
    """FAULTS F10, F11."""
    with pytest.raises(MalformedMessage):
        wire.decode(body)


def test_text_beyond_ascii_is_taken_raw_and_escaped() -> None:
    body = HEAD + '"id":1,"method":"x","params":{"a":"é\u2028😀","b":"\\ud83d\\ude00"}}'.encode()
    params = wire.decode(body).params
    assert params is not UNSET
    assert bytes(params) in body
    assert msgspec.json.decode(params) == {"a": "é\u2028😀", "b": "😀"}


def test_params_are_the_bytes_they_came_as() -> None:
    """DESIGN 4: `params` and `result` stay bytes; 5.4: numbers keep their spelling."""
    written = b'{"b" : 1.10,\r\n "a":\t1e2, "big":123456789012345678901234567890, "a":[ ]}'
    message = wire.decode(HEAD + b'"id" : 1 , "method":"x", "params" :  ' + written + b" }")
    params = message.object_params()
    assert params is not None
    assert bytes(params) == written


@pytest.mark.parametrize("params", [b"[]", b"[1]", b"1", b'"x"', b"true"])
def test_params_that_are_no_object_are_invalid(params: bytes) -> None:
    """2025-11-25 basic#requests: `params` is an object."""
    message = wire.decode(HEAD + b'"id":1,"method":"x","params":' + params + b"}")
    with pytest.raises(InvalidMessage):
        message.object_params()


@pytest.mark.parametrize("rest", [b'"id":1,"method":"x"}', b'"id":1,"method":"x","params":null}'])
def test_params_that_are_absent_or_null_are_none(rest: bytes) -> None:
    """Our choice: some clients write null for none."""
    assert wire.decode(HEAD + rest).object_params() is None


@pytest.mark.parametrize(
    "encoded",
    [b"0", b"1", b"-1", b'""', b'"1"', b'"_GET_stream"', b'"\\u0031"', b"9" * MAX_ID],
)
def test_an_id_is_given_back_as_it_was_written(encoded: bytes) -> None:
    """2025-11-25 basic#requests: a string or an integer; FAULTS F11, F32."""
    assert request_with_id(encoded).request_id() == encoded


@pytest.mark.parametrize(
    "encoded",
    [b"null", b"1.5", b"1.0", b"1e3", b"true", b"[1]", b'{"a":1}', b"9" * (MAX_ID + 1)],
)
def test_an_id_of_another_kind_or_too_long_is_invalid(encoded: bytes) -> None:
    """2025-11-25 basic#requests; FAULTS F11: id null, float, huge."""
    with pytest.raises(InvalidMessage):
        request_with_id(encoded).request_id()


def test_a_notification_has_no_id_to_give() -> None:
    with pytest.raises(InvalidMessage):
        wire.decode(HEAD + b'"method":"x"}').request_id()


def test_a_response_is_a_result_or_else_an_error() -> None:
    result, error = wire.decode(HEAD + b'"id":1,"result":{"a":1}}').outcome()
    assert (result and bytes(result), error) == (b'{"a":1}', None)
    result, error = wire.decode(HEAD + b'"id":1,"error":{"code":1,"data":[]}}').outcome()
    assert (result, error) == (None, b'{"code":1,"data":[]}')


# -- encoding --------------------------------------------------------------------------------------


def test_a_known_and_an_unknown_method_are_encoded_as_json() -> None:
    assert wire.encode_request(b"1", "ping", None) == b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    assert stdlib_json.loads(wire.encode_request(b'"a"', 'x"\n', b"{}")) == {
        "jsonrpc": "2.0",
        "id": "a",
        "method": 'x"\n',
        "params": {},
    }
    assert stdlib_json.loads(wire.encode_notification("é", None)) == {
        "jsonrpc": "2.0",
        "method": "é",
    }


def test_answers_carry_what_they_are_given() -> None:
    """DESIGN 5.4: error code and data as the backend sent them."""
    answer = wire.encode_answer(b'"a"', result=b'{"x":1}', error=None)
    assert answer == b'{"jsonrpc":"2.0","id":"a","result":{"x":1}}'
    answer = wire.encode_answer(b"1", result=None, error=b'{"code":5,"data":null}')
    assert answer == b'{"jsonrpc":"2.0","id":1,"error":{"code":5,"data":null}}'
    assert wire.encode_result(b"1", b"{}") == b'{"jsonrpc":"2.0","id":1,"result":{}}'


def test_an_error_of_ours_has_an_id_of_null_where_the_request_has_none() -> None:
    """JSON-RPC 2.0, section 5; DESIGN 11, first row."""
    assert stdlib_json.loads(wire.encode_error(-32700, 'no "JSON"')) == {
        "jsonrpc": "2.0",
        "id": None,
        "error": {"code": -32700, "message": 'no "JSON"'},
    }
    answer = stdlib_json.loads(wire.encode_error(1, "m", {"a": 1}, request_id=b"7"))
    assert (answer["id"], answer["error"]["data"]) == (7, {"a": 1})


LINE_BREAKS = ("\n", "\r", "\u2028", "\u2029")


@pytest.mark.parametrize("space", ["\n", "\r\n", "\r", "\n\n  ", "\t"])
def test_a_pretty_printed_body_comes_out_on_one_line(space: str) -> None:
    """2025-11-25 basic/transports#stdio: messages must not contain embedded newlines."""
    params = f'{{{space}"a"{space}:{space}[1,{space}"\\n\\r"]{space}}}'.encode()
    line = wire.encode_request(b"1", "x", params)
    assert not any(mark in line.decode() for mark in LINE_BREAKS)
    assert stdlib_json.loads(line)["params"] == {"a": [1, "\n\r"]}
    note = wire.encode_notification("x", params)
    assert not any(mark in note.decode() for mark in LINE_BREAKS)


def test_line_separators_that_node_splits_on_are_escaped() -> None:
    """Node's `readline` takes U+2028 and U+2029 for line ends."""
    params = '{"a\u2028":"\u2029",\n"b":"é"}'.encode()
    line = wire.encode_notification("x", params)
    assert not any(mark in line.decode() for mark in LINE_BREAKS)
    assert stdlib_json.loads(line)["params"] == {"a\u2028": "\u2029", "b": "é"}
    assert "é" in line.decode()


def test_what_is_on_one_line_already_is_not_copied() -> None:
    """DESIGN 4, the hot way."""
    raw = msgspec.Raw(b'{"a":"x"}')
    assert wire.on_one_line(raw) is raw


UNICODE = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["\u2028", "\u2029", "\n", "\r\n", "\u0085", "\x00", "\x7f", '"', "\\", "😀"]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | UNICODE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(UNICODE, inner, max_size=4),
    max_leaves=15,
)


@given(
    st.dictionaries(UNICODE, JSON, max_size=5),
    st.sampled_from([None, 2]),
    st.booleans(),
    UNICODE,
)
def test_whatever_object_goes_in_as_params_comes_out_equal_and_on_one_line(
    value: dict[str, object], indent: int | None, ascii_only: bool, method: str
) -> None:
    """DESIGN 5.4: what a backend sees is what the client sent."""
    written = stdlib_json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    head = f'{{"jsonrpc":"2.0",\n"id":1,"method":{stdlib_json.dumps(method)},"params":'
    body = f"{head}{written}}}"
    message = wire.decode(body.encode())
    line = wire.encode_request(b"42", str(message.method), message.object_params())
    assert not any(mark in line.decode() for mark in LINE_BREAKS)
    assert stdlib_json.loads(line) == {
        "jsonrpc": "2.0",
        "id": 42,
        "method": method,
        "params": stdlib_json.loads(written),
    }


# -- batches ---------------------------------------------------------------------------------------


def test_a_batch_is_split_into_its_messages() -> None:
    """2025-03-26 basic#batching."""
    assert wire.split_batch(b' [ {"a":1} ,\n{"b":[2]}, 3 ] ') == [b'{"a":1}', b'{"b":[2]}', b"3"]
    assert wire.encode_batch([b"{}", b"[]"]) == b"[{},[]]"


def test_a_batch_of_as_many_messages_as_allowed_is_taken() -> None:
    assert len(wire.split_batch(b"[" + b",".join([b"{}"] * MAX_BATCH) + b"]")) == MAX_BATCH


@pytest.mark.parametrize(
    "body",
    [b"[]", b"[[]]", b'[{},[{"a":1}]]', b"[" + b",".join([b"{}"] * (MAX_BATCH + 1)) + b"]"],
    ids=["empty", "nested", "nested later", "too many"],
)
def test_a_batch_that_is_empty_nested_or_too_long_is_invalid(body: bytes) -> None:
    """JSON-RPC 2.0, section 6; the bound is ours."""
    with pytest.raises(InvalidMessage):
        wire.split_batch(body)


def test_a_batch_without_end_is_not_taken_apart() -> None:
    """FAULTS F11: sixteen megabytes of `[1,1,...` would be a gigabyte of objects."""
    body = b"[" + b"1," * 200_000 + b"1]"
    tracemalloc.start()
    try:
        with pytest.raises(InvalidMessage):
            wire.split_batch(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(body)


@pytest.mark.parametrize("body", [b"{}", b"[1,]", b"[", b"", b"[" * 100_000 + b"]" * 100_000])
def test_what_is_no_array_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedMessage):
        wire.split_batch(body)


# -- the id of a response that is too long ---------------------------------------------------------

FILL = b'{"content":[{"id":3,"text":"\\"id\\":4}"}],"id":5}'


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","id":7,"result":' + FILL + b"}",
        b'{"id": 7, "jsonrpc": "2.0", "result": ' + FILL + b"}",
        b'{"jsonrpc":"2.0","id":7,"error":' + FILL + b"}",
        b'{"result":' + FILL + b',"jsonrpc":"2.0","id":7}',
        b'{"result":' + FILL + b',"id":7,"jsonrpc":"2.0"}',
        b'{"jsonrpc":"2.0","result":' + FILL + b',"id":7} \r',
        b'{ "error" : ' + FILL + b' , "jsonrpc" : "2.0" , "id" : 7 }',
    ],
)
def test_the_id_of_a_response_is_found_at_either_end(line: bytes) -> None:
    """FAULTS F13; Python servers write it first, those of the TypeScript SDK last."""
    assert wire.sniff_response_id(line[:45], line[-50:]) == 7
    assert wire.sniff_response_id(line, line) == 7


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","method":"m","params":' + FILL + b"}",
        b'{"jsonrpc":"2.0","id":7,"method":"m","params":' + FILL + b"}",
        b'{"method":"m","params":' + FILL + b',"jsonrpc":"2.0","id":7}',
        b'{"params":' + FILL + b',"method":"m","jsonrpc":"2.0","id":7}',
        b'{"jsonrpc":"2.0","result":' + FILL + b"}",
        b'{"jsonrpc":"2.0","id":"7","result":' + FILL + b"}",
        b'{"jsonrpc":"2.0","id":7.5,"result":' + FILL + b"}",
        b'{"jsonrpc":"2.0","id":-7,"result":' + FILL + b"}",
        b'no JSON at all, with "id":7, in it',
    ],
)
def test_an_id_of_something_else_is_not_taken_for_a_responses(line: bytes) -> None:
    """DESIGN 5.1: its call fails alone, so no other's may be picked; ids of ours are integers."""
    assert wire.sniff_response_id(line[:40], line[-50:]) is None
    assert wire.sniff_response_id(line, line) is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (b'{"code":-1,"message":"x"}', -1),
        (b'{"code":-1}', -1),
        (b"{}", None),
        (b'"x"', None),
        (b'{"code":-1,"data":' + b"[" * 50_000 + b"]" * 50_000 + b"}", None),
    ],
)
def test_an_error_has_a_code_or_none(error: bytes, code: int | None) -> None:
    assert wire.code_of(error) == code
