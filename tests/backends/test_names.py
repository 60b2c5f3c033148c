"""What components are called in front of the proxy, and behind it (PARITY 12, 14)."""

import json
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from sessionproxy.backends.names import (
    MAX_TAGGED,
    PROMPTS,
    RESOURCES,
    TEMPLATES,
    TOOLS,
    Names,
    Reference,
    could_be,
    page_of,
    reference_of,
)
from sessionproxy.servers import Rules
from sessionproxy.servers.rules import ToolChange
from tests.rig.http import Json

ONE: Final = Names("one")

KINDS: Final = [TOOLS, PROMPTS, RESOURCES, TEMPLATES]


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def listed(names: Names, *items: Json, kind: object = TOOLS) -> list[Json]:
    assert kind in KINDS
    found = names.listed(TOOLS if kind is TOOLS else PROMPTS, Raw(encoded(list(items))))
    return json.loads(found or b"null")


@pytest.mark.parametrize(
    ("kind", "original", "public"),
    [
        (TOOLS, "read", "one_read"),
        (TOOLS, "one_read", "one_one_read"),
        (PROMPTS, "", "one_"),
        (RESOURCES, "test://a", "test://one/a"),
        (RESOURCES, "test://one/a", "test://one/one/a"),
        (RESOURCES, "file:///etc/x y?q#f", "file://one//etc/x y?q#f"),
        (RESOURCES, "a+b://%2F\n", "a+b://one/%2F\n"),
        (RESOURCES, "urn:isbn:1", "urn:isbn:1"),
        (RESOURCES, "://x", "://x"),
        (TEMPLATES, "t://{a}{?b*}", "t://one/{a}{?b*}"),
    ],
)
def test_prefixes_are_byte_exact_and_come_off_again(
    kind: object, original: str, public: str
) -> None:
    """PARITY 12."""
    (found,) = (each for each in KINDS if each is kind)
    assert ONE.public(found, original) == public
    assert ONE.original(found, public) == original


@given(st.sampled_from(KINDS), st.text(max_size=20), st.sampled_from(["", "a", "a_b", "Ä"]))
def test_every_name_comes_back(kind: object, name: str, prefix: str) -> None:
    """PARITY 12: whatever the server calls it."""
    (found,) = (each for each in KINDS if each is kind)
    names = Names(prefix)
    assert names.original(found, names.public(found, name)) == name


def test_another_servers_names_are_none_of_its_own() -> None:
    """PARITY 12."""
    for kind, public in ((TOOLS, "two_read"), (TOOLS, "one"), (PROMPTS, "read")):
        assert ONE.original(kind, public) is None
    assert ONE.original(RESOURCES, "test://two/a") is None
    assert ONE.original(RESOURCES, "test://one") is None


def test_a_renamed_tool_has_its_new_name_alone() -> None:
    """PARITY 30: the backend sees the original; the old name is not a second way to it."""
    names = Names("one", Rules(rename_tools={"read": "look"}, rename_prompts={"p": "q"}))
    assert names.public(TOOLS, "read") == "one_look"
    assert names.original(TOOLS, "one_look") == "read"
    assert names.original(TOOLS, "one_read") is None
    assert names.public(PROMPTS, "p") == "one_q"
    assert names.original(PROMPTS, "one_read") == "read"


def test_a_tool_whose_name_was_given_to_another_one_is_not_listed() -> None:
    """Ours: one name, one tool; a call reaches the one that is listed."""
    names = Names(rules=Rules(rename_tools={"read": "look"}))
    assert listed(names, {"name": "look", "x": 1}, {"name": "read"}) == [{"name": "look"}]
    assert names.original(TOOLS, "look") == "read"


def test_what_a_list_says_besides_stays_as_it_is() -> None:
    """DESIGN 5.4; PARITY 28: field by field. Items without a name, too."""
    tool: Json = {"title": None, "x": [1.50, {}], "_meta": {"a": 1}, "inputSchema": {"$ref": "#"}}
    assert listed(ONE, {"name": "t", **tool}) == [{"name": "one_t", **tool}]
    assert listed(ONE, {"title": "nameless"}) == [{"title": "nameless"}]
    assert ONE.listed(TOOLS, Raw(b'{"no":"list"}')) is None
    assert ONE.result("tools/list", b'{"tools":7}') == b'{"tools":7}'


def test_a_tool_can_be_described_anew() -> None:
    """PARITY 14."""
    change = ToolChange(title="Look", description="Looks.")
    names = Names(rules=Rules(tools={"read": change}))
    assert listed(names, {"name": "read", "title": "R"}) == [
        {"name": "read", "title": "Look", "description": "Looks."}
    ]


def test_the_user_interface_of_a_tool_is_found_under_its_new_uri() -> None:
    """SEP-1865, MCP Apps, in either of two places."""
    meta = {"ui/resourceUri": "ui://a", "ui": {"resourceUri": "ui://b", "x": 1}, "y": 2}
    (found,) = listed(ONE, {"name": "t", "_meta": meta})
    assert found["_meta"] == {
        "ui/resourceUri": "ui://one/a",
        "ui": {"resourceUri": "ui://one/b", "x": 1},
        "y": 2,
    }


def test_links_are_found_wherever_content_is() -> None:
    """Issue: links inside results."""
    link = {"type": "resource_link", "uri": "t://x"}
    used = {"type": "tool_result", "content": [link], "structuredContent": {"uri": "t://x"}}
    result = {"content": [link, {"type": "text", "text": "t://x"}, used, 7, {"type": "resource"}]}
    found = json.loads(ONE.result("tools/call", encoded(result)))
    assert found["content"][0]["uri"] == "t://one/x"
    assert found["content"][1] == result["content"][1]
    assert found["content"][2]["content"][0]["uri"] == "t://one/x"
    assert found["content"][2]["structuredContent"] == {"uri": "t://x"}
    assert found["content"][3:] == [7, {"type": "resource"}]
    params = {"messages": [{"role": "user", "content": link}]}
    asked = json.loads(ONE.question("sampling/createMessage", encoded(params)) or b"")
    assert asked["messages"][0]["content"]["uri"] == "t://one/x"


@pytest.mark.parametrize("result", [b'{"content":[]}', b'{"content":"uri"}', b"[1", b'"uri"'])
def test_what_has_no_link_stays_byte_for_byte(result: bytes) -> None:
    """DESIGN 5.4."""
    assert ONE.result("tools/call", result) == result
    assert Names().result("tools/call", b'{"uri":"t://x"}') == b'{"uri":"t://x"}'


def test_what_is_denied_can_be_neither_seen_nor_used() -> None:
    """PARITY 14: allow and deny, by the server's own names."""
    rules = Rules(
        allow_tools=("r*",),
        deny_tools=("rm",),
        deny_prompts=("p",),
        deny_resources=("file://*",),
        tools={"read2": ToolChange(enabled=False)},
    )
    names = Names("one", rules)
    assert [names.shows(TOOLS, n) for n in ("read", "rm", "x", "read2")] == [True] + [False] * 3
    assert not names.shows(PROMPTS, "p")
    assert not names.shows(RESOURCES, "file:///x")
    assert not names.shows(TEMPLATES, "file://{x}")
    assert listed(names, {"name": "rm"}, {"name": "read"}) == [{"name": "one_read"}]


def test_tags_decide_for_all_kinds_and_must_be_known_first() -> None:
    """PARITY 14: `include_tags`, `exclude_tags`, in `_meta` as FastMCP has it."""
    names = Names(rules=Rules(include_tags=("a",), exclude_tags=("b",)))

    def tagged(name: str, *tags: str) -> Json:
        return {"name": name, "_meta": {"fastmcp": {"tags": list(tags)}}}

    assert names.must_list(TOOLS, "x")
    assert names.must_list(PROMPTS, "x")
    for kind in (TOOLS, PROMPTS):
        shown = listed(names, tagged("x", "a"), tagged("y", "a", "b"), tagged("z"), kind=kind)
        assert [each["name"] for each in shown] == ["x"]
        assert [names.shows(kind, name) for name in "xyz"] == [True, False, False]
        assert not names.must_list(kind, "x")
    assert not names.shows_unlisted(TOOLS, "new")
    assert not names.shows_unlisted(RESOURCES, "t://one-of-a-template")
    excluding = Names(rules=Rules(exclude_tags=("b",)))
    assert excluding.shows_unlisted(RESOURCES, "t://one-of-a-template")
    assert not Names(rules=Rules(deny_tools=("x",))).must_list(TOOLS, "x")


def test_tags_are_bounded() -> None:
    """DESIGN 5.3: a server whose tools have new names with each list costs no more than so much."""
    names = Names(rules=Rules(exclude_tags=("b",)))
    for start in range(0, MAX_TAGGED + 2000, 1000):
        listed(names, *({"name": str(number)} for number in range(start, start + 1000)))
    assert names.must_list(TOOLS, "0")
    assert not names.must_list(TOOLS, str(MAX_TAGGED + 1999))


def test_a_request_says_what_it_is_about() -> None:
    """2025-11-25 and 2026-07-28: by name, by URI, or by a reference."""
    assert reference_of("tools/call", b'{"name":"x"}') == Reference(TOOLS, "x")
    assert reference_of("resources/read", b'{"uri":"t://x"}') == Reference(RESOURCES, "t://x")
    assert reference_of("prompts/get", b'{"name":7}') is None
    ref = {"ref": {"type": "ref/resource", "uri": "t://{x}"}}
    assert reference_of("completion/complete", encoded(ref)) == Reference(TEMPLATES, "t://{x}")
    assert reference_of("completion/complete", b"{}") is None
    assert reference_of("tools/list", b'{"name":"x"}') is None
    assert reference_of("tools/call", None) is None


def test_a_page_is_asked_for_with_the_meta_of_the_request_it_is_for() -> None:
    """DESIGN 5.11: but for the progress token, which was good for that alone."""
    params = encoded({"name": "x", "_meta": {"progressToken": 1, "trace": 2}})
    assert json.loads(page_of(params, b'"c"')) == {"cursor": "c", "_meta": {"trace": 2}}
    assert page_of(None, None) == b"{}"


@pytest.mark.parametrize(
    ("uri", "template", "may_be"),
    [
        ("note://one", "note://{name}", True),
        ("note://one/part?page=2", "note://{name}/part{?page,size}", True),
        ("note://one/part", "note://{name}/part{?page,size}", True),
        ("note://part", "note://{name}/part", False),
        ("word://one", "note://{name}", False),
        ("note://a/x/b", "note://{a}/b/{c}", False),
        ("note://ab", "note://a{x}b", True),
        ("note://a", "note://a{x}a", False),
        ("note://one", "note://one", True),
        ("note://one!", "note://one", False),
        ("a" * 100_000, "{x}b" * 1_000, False),
    ],
)
def test_a_uri_may_be_of_a_template_whose_fixed_parts_it_has(
    uri: str, template: str, may_be: bool
) -> None:
    """RFC 6570; and in time that grows with the length alone."""
    assert could_be(uri, template) is may_be
