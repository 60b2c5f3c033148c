"""The examples run as they are."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx2
import mcp_types as types
import pytest
from anyio.abc import Process
from mcp import Client, StdioServerParameters

from .rig.browsers import PATIENCE, pages
from .rig.proxy import ROOT


class Example:
    """One that runs, and what it has said so far."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.said = ""

    async def says(self, pattern: str) -> re.Match[str]:
        """Wait until what it has said matches."""
        assert self._process.stdout is not None
        with anyio.fail_after(30):
            while (found := re.search(pattern, self.said)) is None:
                self.said += (await self._process.stdout.receive()).decode()
        return found


@asynccontextmanager
async def example(
    words: Sequence[str], env: Mapping[str, str] | None = None
) -> AsyncGenerator[Example]:
    """Run `python WORDS...` where the examples are."""
    with tempfile.TemporaryDirectory(prefix="sp-") as state:
        process = await anyio.open_process(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, "XDG_STATE_HOME": state, "PORT": "0", **(env or {})},
            stderr=subprocess.STDOUT,
        )
        try:
            yield Example(process)
        finally:
            process.terminate()
            with anyio.fail_after(40, shield=True):
                assert process.stdout is not None
                async for _ in process.stdout:
                    pass  # it has to have somebody to say goodbye to
                await process.aclose()


def text_of(result: types.CallToolResult) -> str:
    (block,) = result.content
    assert isinstance(block, types.TextContent)
    return block.text


async def test_the_embedded_example_serves_and_its_observer_sees_the_client() -> None:
    """README, Embedding."""
    words = ["-m", "uvicorn", "examples.embedded:app", "--port", "0"]
    async with example(words) as running:
        base = (await running.says(r"running on (http://\S+)"))[1]
        async with Client(f"{base}/tools/mcp", mode="legacy") as client:
            await client.call_tool("count", {})
        await running.says("127.0.0.1 <- result tools/call")
        for line in ("request initialize", "notification notifications/initialized"):
            assert f"127.0.0.1 -> {line}" in running.said
        assert "127.0.0.1 -> request tools/call" in running.said
        assert "nobody" not in running.said


async def test_the_gateway_example_has_two_servers_an_audit_log_and_a_rate_limit() -> None:
    async with example(["examples/gateway.py"]) as running:
        url = (await running.says(r"gateway: (http://\S+)"))[1]
        async with Client(url) as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
            assert tools == {"calculator_evaluate", "calculator_variables", "counter_next_number"}
            told = [text_of(await client.call_tool("counter_next_number")) for _ in range(2)]
            assert told == ["1", "2"]
            for _ in range(8):
                await client.call_tool("calculator_variables")
            with pytest.raises(Exception, match="Too many calls"):
                await client.call_tool("calculator_variables")
        await running.says("audit: local called counter_next_number: done")


async def test_the_fastapi_example_has_its_own_tool_beside_the_servers() -> None:
    words = ["-m", "uvicorn", "examples.fastapi_app:app", "--port", "0"]
    words += ["--timeout-graceful-shutdown", "5"]
    async with example(words) as running:
        base = (await running.says(r"running on (http://\S+)"))[1]
        async with httpx2.AsyncClient() as browser:
            assert (await browser.get(f"{base}/")).json() == {"visits": 1}
        async with Client(f"{base}/tools/mcp") as client:
            assert text_of(await client.call_tool("number_of_visits")) == "1"
            assert text_of(await client.call_tool("count")) == "1"


async def test_the_shared_example_counts_for_all_its_clients() -> None:
    async with example(["examples/shared_backend.py"]) as running:
        url = (await running.says(r"sessionproxy: (http://\S+)"))[1]
        async with Client(url, mode="legacy") as one, Client(url, mode="legacy") as other:
            told = [text_of(await client.call_tool("count")) for client in (one, other, one)]
        assert told == ["1", "2", "3"]


async def test_the_in_process_example_hides_renames_and_changes_tools() -> None:
    """On stdin and stdout, where it is started by its client."""
    with tempfile.TemporaryDirectory(prefix="sp-") as state:
        env = {**os.environ, "XDG_STATE_HOME": state}
        server = StdioServerParameters(
            command=sys.executable, args=[str(ROOT / "examples/in_process.py")], env=env
        )
        async with Client(server) as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
            assert tools == {"weather", "sum"}
            weather = await client.call_tool("weather", {"city": "Rome"})
            assert text_of(weather) == "SUNNY IN ROME"
            assert weather.structured_content == {"result": "SUNNY IN ROME"}
            assert text_of(await client.call_tool("sum", {"a": 2, "b": 3})) == "5"
            with pytest.raises(Exception, match="internal_state"):
                await client.call_tool("internal_state")


@pytest.mark.browser
@pytest.mark.timeout(150)
async def test_the_playwright_example_gives_each_client_a_browser_of_its_own(
    tmp_path: Path,
) -> None:
    """`npx` finds the package among those of the tests: nothing is fetched."""
    npx, chromium = shutil.which("npx"), shutil.which("chromium")
    assert npx is not None
    assert chromium is not None
    shim = tmp_path / "npx"
    package = ROOT / "tests/node"
    shim.write_text(
        "#!/bin/sh\nshift 2\nexport npm_config_offline=true\n"
        f'exec "{npx}" --prefix "{package}" -y playwright-mcp "$@"\n'
    )
    shim.chmod(0o755)
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    words = ["examples/playwright_for_many.py", "--executable-path", chromium, *sandbox]
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    with pages() as site:
        async with example(words, env) as running:
            url = (await running.says(r"browsers: (http://\S+)"))[1]
            with anyio.fail_after(2 * PATIENCE):
                async with Client(url, mode="legacy") as alice, Client(url, mode="legacy") as bob:
                    for name, user in (("alice", alice), ("bob", bob)):
                        await user.call_tool("browser_navigate", {"url": f"{site}/{name}"})
                    for name, user in (("alice", alice), ("bob", bob)):
                        snapshot = text_of(await user.call_tool("browser_snapshot"))
                        assert f"Page of {name}" in snapshot
