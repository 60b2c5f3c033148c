"""The examples run as they are."""

import os
import re
import subprocess
import sys
import tempfile

import anyio
from mcp import Client

from .rig.proxy import ROOT


async def test_the_embedded_example_serves_and_its_hook_sees_the_client() -> None:
    """README, Embedding."""
    with tempfile.TemporaryDirectory(prefix="sp-") as state:
        process = await anyio.open_process(
            [sys.executable, "-m", "uvicorn", "examples.embedded:app", "--port", "0"],
            cwd=ROOT,
            env={**os.environ, "XDG_STATE_HOME": state},
            stderr=subprocess.STDOUT,
        )
        try:
            with anyio.fail_after(30):
                assert process.stdout is not None
                said = ""
                while (found := re.search(r"running on (http://\S+)", said)) is None:
                    said += (await process.stdout.receive()).decode()
                async with Client(f"{found[1]}/tools/mcp", mode="legacy") as client:
                    await client.call_tool("count", {})
                while "127.0.0.1 <- result tools/call" not in said:
                    said += (await process.stdout.receive()).decode()
        finally:
            process.terminate()
            with anyio.fail_after(20, shield=True):
                await process.aclose()
    for line in ("request initialize", "notification notifications/initialized"):
        assert f"127.0.0.1 -> {line}" in said
    assert "127.0.0.1 -> request tools/call" in said
    assert "nobody" not in said
