"""Models that are written as their servers wrote them (DESIGN 5.4)."""

import copy
import pickle

import mcp_types as types
import pytest
from pydantic import ValidationError

from sessionproxy.client.written import encoded, keep_items, read, written

RAW = (
    b'{"name":"do","x-own":1.50,"annotations":{"x-own":[],"readOnlyHint":true},'
    b'"inputSchema":{"type":"object","x":null},"title":"Do"}'
)


def test_what_was_not_changed_stays_as_it_was_written() -> None:
    """Byte by byte, in copies too; and nobody else sees that it is kept."""
    tool = read(types.Tool, RAW)
    assert written(tool) == RAW
    for each in (tool.model_copy(), copy.deepcopy(tool), pickle.loads(pickle.dumps(tool))):
        assert written(each) == RAW
    plain = types.Tool.model_validate_json(RAW)
    assert tool == plain
    assert (repr(tool), tool.model_dump()) == (repr(plain), plain.model_dump())
    with pytest.raises(ValidationError):
        read(types.Tool, b"{}")


def test_what_was_changed_is_written_anew() -> None:
    """One level down, too; what has become None is gone."""
    tool = read(types.Tool, RAW).model_copy(update={"title": None, "description": "Does."})
    assert tool.annotations is not None
    tool.annotations.destructive_hint = False
    assert written(tool) == (
        b'{"name":"do","x-own":1.50,"annotations":{"x-own":[],"readOnlyHint":true,'
        b'"destructiveHint":false},"inputSchema":{"type":"object","x":null},'
        b'"description":"Does."}'
    )
    result = read(types.CallToolResult, b'{"content":[{"type":"text","text":"a","x":1}],"y":2}')
    result.content.append(types.TextContent(text="b"))
    result.is_error = True
    assert written(result) == (
        b'{"content":[{"type":"text","text":"a"},{"type":"text","text":"b"}],"y":2,"isError":true}'
    )


def test_what_was_made_here_has_no_defaults_of_one_era() -> None:
    """Unless they were said."""
    assert encoded(types.ReadResourceResult(contents=[])) == b'{"contents":[]}'
    assert written(types.GetPromptResult(messages=[])) == b'{"messages":[]}'
    said = types.ReadResourceResult(contents=[], ttl_ms=5)
    assert encoded(said) == b'{"ttlMs":5,"contents":[]}'


def test_each_item_of_a_list_is_kept() -> None:
    """Of a list that nobody wrote there is nothing to keep."""
    page = read(types.ListToolsResult, b'{"tools":[%b]}' % RAW)
    keep_items(page, "tools", page.tools)
    assert written(page.tools[0]) == RAW
    made = types.ListToolsResult(tools=[types.Tool(name="do", input_schema={})])
    keep_items(made, "tools", made.tools)
    assert written(made.tools[0]) == b'{"name":"do","inputSchema":{}}'
