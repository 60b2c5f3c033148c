"""What of one server is shown, and under which names.

Names and URIs are the server's own: no rule knows of prefixes. Neighbours: `server` makes them of
what the file says; whoever puts several servers together asks them.
"""

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Annotated, Final, cast

import msgspec
from msgspec import Meta

from ..config import ConfigError
from .wording import NEW_NAME, NEW_NAMES, shown

TAG_KEYS: Final = ("fastmcp", "_fastmcp")
"""Members of `_meta` in which servers made with FastMCP say their components' tags."""


class ToolChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one tool is shown."""

    name: Annotated[
        str | None,
        Meta(
            description="Its new name, before the server's prefix.",
            extra_json_schema={"pattern": f"^{NEW_NAME.pattern}$"},
        ),
    ] = None
    """Its new name, before the server's prefix."""
    title: Annotated[str | None, Meta(description="Its new title.")] = None
    """Its new title."""
    description: Annotated[str | None, Meta(description="Its new description.")] = None
    """Its new description."""
    enabled: Annotated[
        bool | None,
        Meta(description="false hides it; true shows it whatever its tags."),
    ] = None
    """False hides it; True shows it whatever its tags."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What of a server is shown: what a pattern allows (all, where there is none) and none denies.

    Its fields are given by their names. Patterns are those of `fnmatch.fnmatchcase`; a template
    counts as a resource, by its `uriTemplate`.
    """

    allow_tools: tuple[str, ...] = ()
    """Patterns of tools; all, where there is none."""
    deny_tools: tuple[str, ...] = ()
    """Patterns of tools that are not shown, whatever allows them."""
    allow_prompts: tuple[str, ...] = ()
    """Patterns of prompts; all, where there is none."""
    deny_prompts: tuple[str, ...] = ()
    """Patterns of prompts that are not shown."""
    allow_resources: tuple[str, ...] = ()
    """Patterns of URIs and URI templates; all, where there is none."""
    deny_resources: tuple[str, ...] = ()
    """Patterns of URIs and URI templates that are not shown."""
    rename_tools: Mapping[str, str] = MappingProxyType({})
    """New names by the original ones; those of `tools` are among them."""
    rename_prompts: Mapping[str, str] = MappingProxyType({})
    """New names by the original ones."""
    tools: Mapping[str, ToolChange] = MappingProxyType({})
    """How single tools are shown, by their original names."""
    include_tags: tuple[str, ...] = ()
    """Only what has one of these tags is shown; everything, where there is none."""
    exclude_tags: tuple[str, ...] = ()
    """What has one of these tags is not shown."""

    @property
    def is_empty(self) -> bool:
        """Everything is shown as it is."""
        return self == Rules()

    def shows_tool(self, name: str, tags: Collection[str] = ()) -> bool:
        """Return whether clients get to know a tool. `name`: the server's own."""
        enabled = self.tools[name].enabled if name in self.tools else None
        if enabled is False or not _let_in(name, self.allow_tools, self.deny_tools):
            return False
        return enabled is True or self._wants(tags)

    def shows_prompt(self, name: str, tags: Collection[str] = ()) -> bool:
        """Return whether clients get to know a prompt. `name`: the server's own."""
        return _let_in(name, self.allow_prompts, self.deny_prompts) and self._wants(tags)

    def shows_resource(self, uri: str, tags: Collection[str] = ()) -> bool:
        """Return whether clients get to know a resource or, by its `uriTemplate`, a template."""
        return _let_in(uri, self.allow_resources, self.deny_resources) and self._wants(tags)

    def _wants(self, tags: Collection[str]) -> bool:
        wanted = not self.include_tags or any(tag in tags for tag in self.include_tags)
        return wanted and not any(tag in tags for tag in self.exclude_tags)


NO_RULES: Final = Rules()


def _let_in(name: str, allowed: tuple[str, ...], denied: tuple[str, ...]) -> bool:
    if allowed and not any(fnmatchcase(name, pattern) for pattern in allowed):
        return False
    return not any(fnmatchcase(name, pattern) for pattern in denied)


def tags_of(meta: object) -> frozenset[str]:
    """Return the tags that a component's `_meta` tells of."""
    if not isinstance(meta, Mapping):
        return frozenset()
    members = cast("Mapping[str, object]", meta)
    told: set[str] = set()
    for key in TAG_KEYS:
        ours = members.get(key)
        tags = cast("Mapping[str, object]", ours).get("tags") if isinstance(ours, Mapping) else None
        if isinstance(tags, list | tuple):
            told.update(tag for tag in cast("list[object]", tags) if isinstance(tag, str))
    return frozenset(told)


def tool_names(
    renamed: Mapping[str, str], changes: Mapping[str, ToolChange], *, where: str
) -> Mapping[str, str]:
    """Return the new names of tools, those that stand in their changes too.

    Raises: ConfigError: two tools would have one name, or one tool two.
    """
    new = [(f"{where}.rename_tools.{shown(name)}", name, renamed[name]) for name in renamed]
    for name, change in changes.items():
        key = f"{where}.tools.{shown(name)}.name"
        if change.name is not None and name in renamed:
            raise ConfigError(f"{key}: rename_tools has this tool too; give one of them")
        if change.name is not None:
            new.append((key, name, change.name))
    names = {original: name for _, original, name in new}
    check_names(new, kept=changes.keys() - names.keys())
    return names


def check_names(new: Iterable[tuple[str, str, str]], *, kept: Collection[str] = ()) -> None:
    """`new`: for each where it stands, the original name and the new one. `kept`: names that are
    known to be in use and stay as they are.

    Raises: ConfigError: a new name is not allowed, or is another's too.
    """
    taken = {name: name for name in kept}
    for key, original, name in new:
        if not NEW_NAME.fullmatch(name):
            raise ConfigError(f"{key}: expected {NEW_NAMES}")
        if name in taken:
            other = shown(taken[name])
            raise ConfigError(f"{key}: {other} has this name too; expected one of its own")
        taken[name] = original
