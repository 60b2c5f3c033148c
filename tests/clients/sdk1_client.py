"""What a client of the SDK's first major version sees of a proxy, as JSON on stdout.

Neighbours: `test_python_sdk1` runs it in the environment of that version, with the URLs of two
proxies as arguments, the demo server's and the everything server's. Never imported.
"""
# It is written against mcp 1.30, which is not in the environment that is type-checked.
# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import anyio
from mcp import ClientSession, types
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import McpError
from pydantic import AnyUrl


class User:
    """One client: its name is what it answers, and it keeps what it is told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[str] = []
        self.logs: list[object] = []
        self.progress: list[object] = []
        self.updated: list[str] = []
        self.was_updated = anyio.Event()
        self.version = ""
        self.session: ClientSession

    @asynccontextmanager
    async def at(self, url: str) -> AsyncIterator["User"]:
        async with (
            streamable_http_client(url) as (incoming, outgoing, self.session_id),
            ClientSession(
                incoming,
                outgoing,
                elicitation_callback=self._elicited,
                sampling_callback=self._sampled,
                list_roots_callback=self._roots,
                logging_callback=self._logged,
                message_handler=self._noted,
            ) as self.session,
        ):
            opened = await self.session.initialize()
            self.version = str(opened.protocolVersion)
            yield self

    async def call(self, tool: str, **arguments: object) -> str:
        result = await self.session.call_tool(tool, arguments, progress_callback=self._progressed)
        return result.content[0].text

    async def _elicited(self, context, params):
        self.asked.append(params.message)
        return types.ElicitResult(action="accept", content={"name": self.name})

    async def _sampled(self, context, params):
        content = types.TextContent(type="text", text=f"{self.name}'s model")
        return types.CreateMessageResult(role="assistant", content=content, model="a-model")

    async def _roots(self, context):
        return types.ListRootsResult(roots=[types.Root(uri=AnyUrl(f"file:///{self.name}"))])

    async def _logged(self, params):
        self.logs.append(params.data)

    async def _progressed(self, progress, total, message):
        self.progress.append([progress, total, message])

    async def _noted(self, message):
        if isinstance(message, Exception):
            raise message
        if isinstance(message, types.ServerNotification) and isinstance(
            message.root, types.ResourceUpdatedNotification
        ):
            self.updated.append(str(message.root.params.uri))
            self.was_updated.set()


async def notebooks(url: str) -> dict[str, object]:
    """Two users at once of the demo server, who take turns."""
    seen: dict[str, object] = {}
    async with User("alice").at(url) as alice, User("bob").at(url) as bob:

        async def work(user: User, by: int) -> None:
            await user.call("evaluate", source=f"{user.name} = {by}")
            counts = [await user.call("count", by=by) for _ in range(10)]
            greeting = await user.call("greet")
            await user.call("countdown", steps=2, delay=0.01)
            (contents,) = (
                await user.session.read_resource(AnyUrl("notebook://variables"))
            ).contents
            seen[user.name] = {
                "counts": counts,
                "greeting": greeting,
                "asked": user.asked,
                "variables": json.loads(contents.text),
                "progress": user.progress,
                "logs": user.logs,
            }

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work, alice, 1)
            tasks.start_soon(work, bob, 100)
        seen["version"] = alice.version
        seen["ids differ"] = alice.session_id() != bob.session_id()
    return seen


async def everything(url: str) -> dict[str, object]:
    """One user of the server that asks and tells everything."""
    async with User("carol").at(url) as carol:
        session = carol.session
        await session.send_ping()
        await session.subscribe_resource(AnyUrl("test://watched-resource"))
        await carol.call("test_trigger_resource_updated")
        with anyio.fail_after(10):
            await carol.was_updated.wait()
        prompt = await session.get_prompt("test_prompt_with_arguments", {"arg1": "a", "arg2": "b"})
        try:
            await session.call_tool("no_such_tool", {})
            refused: object = None
        except McpError as error:
            refused = [error.error.code, error.error.message]
        await session.set_logging_level("error")
        await carol.call("test_tool_with_logging")
        return {
            "sampled": await carol.call("test_sampling", prompt="What?"),
            "roots": json.loads(await carol.call("test_list_roots"))[0]["uri"],
            "updated": carol.updated,
            "prompt": prompt.messages[0].content.text,
            "prompts": len((await session.list_prompts()).prompts),
            "resources": len((await session.list_resources()).resources),
            "refused": refused,
            "logs at level error": carol.logs,
            "is error": (await session.call_tool("test_error_handling", {})).isError,
        }


async def main() -> None:
    seen = {
        "sdk": version("mcp"),
        "notebooks": await notebooks(sys.argv[1]),
        "everything": await everything(sys.argv[2]),
    }
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    anyio.run(main)
