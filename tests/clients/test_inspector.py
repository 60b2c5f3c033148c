"""The MCP Inspector's command line, with which people look at a server first."""

import json
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, cast

import anyio
import pytest

from tests.rig.processes import Census
from tests.rig.proxy import DEMO, ROOT, Proxy, proxy

INSPECTOR: Final = ROOT / "tests/node/node_modules/.bin/mcp-inspector"

pytestmark = pytest.mark.node

Inspect = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture
def inspect(tmp_path: Path) -> Inspect:
    """Run the Inspector once; return the JSON that it printed. It keeps its files in `tmp_path`."""

    async def run(running: Proxy, *options: str, path: str = "") -> dict[str, Any]:
        node = shutil.which("node")
        assert node is not None
        url = running.url + path
        with anyio.fail_after(30):
            ended = await anyio.run_process(
                [node, str(INSPECTOR), "--cli", url, "--transport", "http", *options],
                check=False,
                env={**os.environ, "HOME": str(tmp_path)},
            )
        assert ended.returncode == 0, ended.stderr.decode()
        return cast("dict[str, Any]", json.loads(ended.stdout))

    return run


async def test_the_inspector_lists_tools_and_calls_one(inspect: Inspect) -> None:
    """@modelcontextprotocol/inspector 2.12.0, `--cli URL --transport http --method ...`."""
    async with proxy(DEMO) as running:
        listed = await inspect(running, "--method", "tools/list")
        assert {tool["name"] for tool in listed["tools"]} == {
            "evaluate",
            "variables",
            "count",
            "greet",
            "countdown",
        }
        call = ("--method", "tools/call", "--tool-name", "evaluate", "--tool-arg")
        called = await inspect(running, *call, "source=6*7")
        assert called["content"] == [{"type": "text", "text": "42"}]
        assert called["structuredContent"] == {"result": "42"}
        assert not called["isError"]


async def test_two_runs_of_the_inspector_are_two_sessions(inspect: Inspect) -> None:
    """Every run initialises anew, so the second one starts from nothing."""
    async with proxy(DEMO) as running:
        for _ in range(2):
            called = await inspect(running, "--method", "tools/call", "--tool-name", "count")
            assert called["content"] == [{"type": "text", "text": "1"}]


async def test_runs_of_the_inspector_go_on_in_the_conversation_that_they_name(
    inspect: Inspect,
) -> None:
    """DESIGN section 6: by a path, in either era, or by what a modern client sends with a call."""
    count = ("--method", "tools/call", "--tool-name", "count")
    modern = ("--protocol-era", "modern")
    named = ("--tool-metadata", "io.sessionproxy/conversation=theirs")
    async with proxy(DEMO, "--affinity", "conversation") as running:
        told = [
            await inspect(running, *count, path="/s/mine"),
            await inspect(running, *count, *modern, path="/s/mine"),
            await inspect(running, *count, *modern, *named),
        ]
    assert [called["content"][0]["text"] for called in told] == ["1", "2", "1"]


async def test_the_inspector_reads_resources_and_prompts(inspect: Inspect) -> None:
    """@modelcontextprotocol/inspector 2.12.0, the other methods that the demo server answers."""
    async with proxy(DEMO) as running:
        uri = "notebook://variables"
        read = await inspect(running, "--method", "resources/read", "--uri", uri)
        assert [json.loads(contents["text"]) for contents in read["contents"]] == [{}]
        got = ("--method", "prompts/get", "--prompt-name", "solve", "--prompt-args")
        prompt = await inspect(running, *got, "problem=1+1")
        assert prompt["messages"][0]["content"]["text"].endswith("at the end: 1+1")


async def test_a_run_of_the_inspector_leaves_nothing_though_it_says_no_goodbye(
    inspect: Inspect,
) -> None:
    """DESIGN section 7: it closes its stream, sends no DELETE, and its backend lingers."""
    async with proxy(DEMO, "--idle", "0", "--linger", "3") as running:
        census = Census(running.state_dir)
        await inspect(running, "--method", "tools/list")
        assert census.directories()
        await census.gone(within=20)
