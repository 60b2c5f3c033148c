"""What the components of one server are called in front of the proxy, and behind it.

Tools and prompts are `{prefix}_{name}` in front, resources and templates `scheme://{prefix}/rest`
(the part of a URI behind `://` is not looked at; one without it stays as it is). Rules of the
operator's rename, hide and re-describe. Everything else in a message stays as it was written.
Neighbours: `backends.renamed` does it for one server, `backends.composite` for several.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from .. import wire
from ..servers import NO_RULES, Rules, tags_of
from ..wire import Bytes
from ..wire.envelope import text

MAX_TAGGED: Final = 10_000
"""Components of one server whose tags are kept; the one listed first goes first."""

_EXPRESSION: Final = re.compile(r"\{[^{}]*\}")
"""Of a URI template."""

_URI: Final = re.compile(r"([^:]+://)(.*)", re.DOTALL)
"""Scheme and rest; a template is no valid URI, but looks like one as far as this goes."""

Edit = Callable[[Raw], Bytes | None]
"""Returns an encoded value as it is to be; None: left out."""


class Kind(NamedTuple):
    """How the components of one list are found in messages."""

    method: str
    """That lists them."""
    member: str
    key: str
    by_uri: bool = False


TOOLS: Final = Kind("tools/list", "tools", "name")
PROMPTS: Final = Kind("prompts/list", "prompts", "name")
RESOURCES: Final = Kind("resources/list", "resources", "uri", by_uri=True)
TEMPLATES: Final = Kind("resources/templates/list", "resourceTemplates", "uriTemplate", by_uri=True)

KINDS: Final[Mapping[str, Kind]] = {
    kind.method: kind for kind in (TOOLS, PROMPTS, RESOURCES, TEMPLATES)
}

NAMED: Final[Mapping[str, Kind]] = {
    "tools/call": TOOLS,
    "prompts/get": PROMPTS,
    "resources/read": RESOURCES,
    "resources/subscribe": RESOURCES,
    "resources/unsubscribe": RESOURCES,
}
"""Requests about one component, which their parameters name by the key of its kind."""


class Reference(NamedTuple):
    """What a request is about."""

    kind: Kind
    name: str
    """Or URI."""


def reference_of(method: str, params: Bytes | None) -> Reference | None:
    """Return what a request is about; None: nothing of any one server's, or it does not say."""
    kind = NAMED.get(method)
    if kind is not None:
        name = text(wire.member(params, kind.key))
        return None if name is None else Reference(kind, name)
    if method == "completion/complete":
        return _completed(wire.members(wire.member(params, "ref")))
    return None


def _completed(ref: Mapping[str, Raw]) -> Reference | None:
    uri, name = text(ref.get("uri")), text(ref.get("name"))
    if text(ref.get("type")) == "ref/resource":
        return None if uri is None else Reference(TEMPLATES, uri)
    return None if name is None else Reference(PROMPTS, name)


def page_of(params: Bytes | None, cursor: Bytes | None) -> bytes:
    """Return the parameters of a request for a page of a list, with the `_meta` of another one."""
    fields: dict[str, Bytes] = {} if cursor is None else {"cursor": cursor}
    meta = wire.members(wire.member(params, "_meta"))
    meta.pop("progressToken", None)
    if meta:
        fields["_meta"] = wire.rebuilt(meta)
    return wire.rebuilt(fields)


def could_be(uri: str, template: str) -> bool:
    """Return whether a URI may be one that a template makes (RFC 6570): its fixed parts are there,
    in order. What stands between is not looked at."""
    first, *others = _EXPRESSION.split(template)
    if not others:
        return uri == first
    if not uri.startswith(first):
        return False
    at, last = len(first), others.pop()
    for part in others:
        found = uri.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return uri.endswith(last) and len(uri) - len(last) >= at


class Names:
    """Of one server. Pure, but for what it has learnt of the tags of its components."""

    def __init__(self, prefix: str = "", rules: Rules = NO_RULES) -> None:
        """`prefix`: empty for none; with several parts, as `outer/inner`."""
        self.prefix = prefix
        self.rules = rules
        self._head = f"{prefix.replace('/', '_')}_" if prefix else ""
        self._renamed = {TOOLS: rules.rename_tools, PROMPTS: rules.rename_prompts}
        self._original = {
            kind: {new: old for old, new in renames.items()}
            for kind, renames in self._renamed.items()
        }
        self._by_tags = bool(rules.include_tags or rules.exclude_tags)
        self._tags: dict[tuple[str, str], frozenset[str]] = {}
        """By list and original name, where the rules speak of tags."""

    @property
    def changes_nothing(self) -> bool:
        return not self.prefix and self.rules.is_empty

    # -- one name ----------------------------------------------------------------------------------

    def public(self, kind: Kind, original: str) -> str:
        """Return what a component is called in front."""
        if kind.by_uri:
            return self._public_uri(original)
        name = self._renamed[kind].get(original, original)
        return self._head + name

    def _public_uri(self, original: str) -> str:
        found = _URI.fullmatch(original) if self.prefix else None
        return original if found is None else f"{found[1]}{self.prefix}/{found[2]}"

    def original(self, kind: Kind, public: str) -> str | None:
        """Return what a component is called at the server; None: it cannot be one of its own."""
        name = self._without_prefix(kind, public)
        if name is None or kind.by_uri:
            return name
        if name in self._original[kind]:
            return self._original[kind][name]
        return None if name in self._renamed[kind] else name

    def _without_prefix(self, kind: Kind, public: str) -> str | None:
        if not self.prefix:
            return public
        if not kind.by_uri:
            return public.removeprefix(self._head) if public.startswith(self._head) else None
        found = _URI.fullmatch(public)
        if found is None:
            return public  # it has no place for a prefix
        head = f"{self.prefix}/"
        return found[1] + found[2].removeprefix(head) if found[2].startswith(head) else None

    def shows(self, kind: Kind, original: str) -> bool:
        """Return whether a component may be seen and used."""
        tags = self._tags.get((kind.method, original), frozenset[str]())
        if kind is TOOLS:
            return self.rules.shows_tool(original, tags)
        if kind is PROMPTS:
            return self.rules.shows_prompt(original, tags)
        return self.rules.shows_resource(original, tags)

    def must_list(self, kind: Kind, original: str) -> bool:
        """Return whether only a list can say if this component may be used."""
        return self._by_tags and (kind.method, original) not in self._tags

    def shows_unlisted(self, kind: Kind, original: str) -> bool:
        """Return whether a component may be used though perhaps no list has it: what has a URI may
        be one of a template's."""
        return self.shows(kind, original) and (kind.by_uri or not self.must_list(kind, original))

    def _learn(self, kind: Kind, original: str, item: Raw) -> None:
        self._tags.pop((kind.method, original), None)
        self._tags[kind.method, original] = _tags_of(item)
        if len(self._tags) > MAX_TAGGED:
            del self._tags[next(iter(self._tags))]

    # -- towards the server ------------------------------------------------------------------------

    def request(self, method: str, params: Bytes | None, original: str) -> Bytes | None:
        """Return the parameters of a request about a component that the server knows as
        `original`."""
        if params is None:
            return None
        encoded = msgspec.json.encode(original)
        kind = NAMED.get(method)
        if kind is not None:
            return _with(params, kind.key, encoded)
        ref = wire.members(wire.member(params, "ref"))
        key = "uri" if "uri" in ref else "name"
        return _with(params, "ref", wire.rebuilt({**ref, key: encoded}))

    # -- from the server ---------------------------------------------------------------------------

    def result(self, method: str, result: Bytes) -> Bytes:
        """Return a result with the names that are used in front."""
        kind = KINDS.get(method)
        if kind is not None:
            return _edited(result, kind.member, lambda items: self.listed(kind, items))
        if not self.prefix or b'"uri"' not in bytes(result):
            return result
        if method == "resources/read":
            return _edited(result, "contents", self._contents)
        if method == "prompts/get":
            return _edited(result, "messages", self._messages)
        if method in ("tools/call", "tasks/result"):
            return _edited(result, "content", self._blocks)
        return result

    def question(self, method: str, params: Bytes | None) -> Bytes | None:
        """Return the parameters of a request of the server's, likewise."""
        linked = method == "sampling/createMessage" and self.prefix and params is not None
        if params is None or not linked or b'"uri"' not in bytes(params):
            return params
        return _edited(params, "messages", self._messages)

    def updated(self, params: Bytes | None) -> Bytes | None:
        """Return the parameters of a notification about a resource."""
        if params is None or not self.prefix:
            return params
        return _edited(params, "uri", self._uri)

    # -- parts of messages -------------------------------------------------------------------------

    def listed(self, kind: Kind, items: Raw) -> bytes | None:
        """Return a list of components: those that are shown, as they are called in front."""
        found = _items(items)
        if found is None:
            return None
        kept = [self._component(kind, item) for item in found]
        return msgspec.json.encode([item for item in kept if item is not None])

    def _component(self, kind: Kind, item: Raw) -> Raw | None:
        original = text(wire.member(item, kind.key))
        if original is None:
            return item
        if self._by_tags:
            self._learn(kind, original, item)
        public = self.public(kind, original)
        if not self.shows(kind, original) or self.original(kind, public) != original:
            return None  # in the latter case another one was given its name
        fields: dict[str, Bytes] = {**wire.members(item)}
        fields[kind.key] = msgspec.json.encode(public)
        if kind is TOOLS:
            self._re_described(original, fields)
            if self.prefix and "_meta" in fields:
                fields["_meta"] = self._user_interface(fields["_meta"])
        return Raw(wire.rebuilt(fields))

    def _re_described(self, original: str, fields: dict[str, Bytes]) -> None:
        change = self.rules.tools.get(original)
        if change is None:
            return
        for key, value in (("title", change.title), ("description", change.description)):
            if value is not None:
                fields[key] = msgspec.json.encode(value)

    def _user_interface(self, meta: Bytes) -> Bytes:
        """Return the `_meta` of a tool that may name a resource with its user interface (SEP-1865,
        MCP Apps), in either of two places."""
        meta = _edited(meta, "ui/resourceUri", self._uri)
        return _edited(meta, "ui", lambda ui: _edited(ui, "resourceUri", self._uri))

    def _uri(self, encoded: Raw) -> bytes | None:
        uri = text(encoded)
        return None if uri is None else msgspec.json.encode(self._public_uri(uri))

    def _contents(self, items: Raw) -> bytes | None:
        return _each(items, lambda item: _edited(item, "uri", self._uri))

    def _messages(self, items: Raw) -> bytes | None:
        return _each(items, lambda item: _edited(item, "content", self._blocks))

    def _blocks(self, content: Raw) -> Bytes | None:
        """Return content, one block or a list of them."""
        if bytes(content).startswith(b"["):
            return _each(content, self._block)
        return self._block(content)

    def _block(self, block: Raw) -> Bytes:
        kind = text(wire.member(block, "type"))
        if kind == "resource_link":
            return _edited(block, "uri", self._uri)
        if kind == "resource":
            return _edited(block, "resource", lambda found: _edited(found, "uri", self._uri))
        if kind == "tool_result":
            return _edited(block, "content", self._blocks)
        return block


def _edited(value: Bytes, name: str, edit: Edit) -> Bytes:
    """Return an object with one member as `edit` returns it; as it is, where it has none, or `edit`
    returns None."""
    found = wire.member(value, name)
    new = None if found is None else edit(found)
    if found is None or new is None or bytes(new) == bytes(found):
        return value
    return _with(value, name, bytes(new))


def _with(value: Bytes, name: str, new: bytes) -> Bytes:
    changed = wire.with_member(value, name, new)
    return value if changed is None else changed


def _each(items: Raw, edit: Callable[[Raw], Bytes]) -> bytes | None:
    found = _items(items)
    if found is None:
        return None
    return b"[" + b",".join(bytes(edit(item)) for item in found) + b"]"


def _items(items: Raw) -> list[Raw] | None:
    """Return the items of an encoded list; None where it is no list."""
    try:
        return msgspec.json.decode(items, type=list[Raw])
    except (msgspec.DecodeError, RecursionError):
        return None


def _tags_of(tool: Raw) -> frozenset[str]:
    meta = wire.member(tool, "_meta")
    try:
        return frozenset() if meta is None else tags_of(msgspec.json.decode(meta))
    except (msgspec.DecodeError, RecursionError):
        return frozenset()
