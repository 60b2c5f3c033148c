"""Several scripted servers behind one proxy, and what tests say of them often.

Neighbours: `tests.rig.embedded` serves what `servers` returns; `tests.rig.scripted` is each server.
"""

from collections.abc import Sequence
from typing import Final

from sessionproxy.servers import Configuration, configuration_from

from .embedded import SCRIPTED, scripted
from .http import Client, Json

DOWN: Final = ("/bin/false",)
"""A command that ends at once."""

UNAVAILABLE: Final = "sessionproxy/unavailable"


def servers(**commands: Sequence[str] | Json) -> Configuration:
    """Return a configuration of these servers. Of each: its command, or all its fields."""
    written = {name: _written(found) for name, found in commands.items()}
    return configuration_from({"mcpServers": written}, source="servers.json")


def _written(found: Sequence[str] | Json) -> Json:
    if isinstance(found, dict):
        command = found.get("command", SCRIPTED)
        return {**found, "command": command[0], "args": list(command[1:])}
    return {"command": found[0], "args": list(found[1:])}


def two(**more: Sequence[str] | Json) -> Configuration:
    """Return a configuration of the servers `one` and `two`, and `more`."""
    return servers(one=SCRIPTED, two=SCRIPTED, **more)


def listing(**lists: Sequence[object]) -> tuple[str, ...]:
    """The command of a server that lists these: names of `tools` and `prompts`, URIs of `resources`
    and `templates`; or whole items."""
    on = {
        "tools/list": {"tools": _items("name", lists.get("tools", ()))},
        "prompts/list": {"prompts": _items("name", lists.get("prompts", ()))},
        "resources/list": {"resources": _items("uri", lists.get("resources", ()))},
        "resources/templates/list": {
            "resourceTemplates": _items("uriTemplate", lists.get("templates", ()))
        },
    }
    return scripted(on={name: [{"replies": {"result": result}}] for name, result in on.items()})


def _items(key: str, items: Sequence[object]) -> list[object]:
    return [item if isinstance(item, dict) else _item(key, str(item)) for item in items]


def _item(key: str, name: str) -> Json:
    more: Json = {"inputSchema": {"type": "object"}} if key == "name" else {"name": name}
    return {key: name, **more}


async def names(client: Client, method: str, member: str, key: str) -> list[str]:
    """Return what a list has, in its order."""
    answer = await client.request(method)
    return [item[key] for item in answer["result"][member]]
