"""The last client of the Python SDK's first major version, which most clients in use build on.

It has an environment of its own and runs there as a program.
"""

import json
from typing import Any, Final, cast

import anyio
import pytest

from tests.rig.processes import Census
from tests.rig.proxy import DEMO, EVERYTHING, ROOT, proxy

SDK1_PYTHON: Final = ROOT / ".cache/sdk1/bin/python"
CLIENT: Final = ROOT / "tests/clients/sdk1_client.py"


@pytest.mark.sdk1
async def test_a_client_of_sdk_1_30_gets_state_questions_and_notifications_of_its_own() -> None:
    """mcp 1.30.0 from PyPI, unmodified; revision 2025-11-25."""
    async with proxy(DEMO) as demo, proxy(EVERYTHING) as everything:
        with anyio.fail_after(45):
            ended = await anyio.run_process(
                [str(SDK1_PYTHON), str(CLIENT), demo.url, everything.url],
                check=False,
            )
        assert ended.returncode == 0, ended.stderr.decode()
        seen = cast("dict[str, Any]", json.loads(ended.stdout))
        for running in (demo, everything):
            await Census(running.state_dir).gone(within=10)

    assert seen == {
        "sdk": "1.30.0",
        "notebooks": {
            "version": "2025-11-25",
            "ids differ": True,
            "alice": notebook_of("alice", 1),
            "bob": notebook_of("bob", 100),
        },
        "everything": {
            "sampled": "LLM response: carol's model",
            "roots": "file:///carol",
            "updated": ["test://watched-resource"],
            "prompt": "Prompt with arguments: arg1='a', arg2='b'",
            "prompts": 5,
            "resources": 3,
            "refused": [-32602, "Unknown tool: no_such_tool"],
            "logs at level error": [],
            "is error": True,
        },
    }


def notebook_of(name: str, by: int) -> dict[str, object]:
    """Return what a user sees who counts by this number."""
    return {
        "counts": [str(by * n) for n in range(1, 11)],
        "greeting": f"Hello, {name}!",
        "asked": ["Who are you?"],
        "variables": {name: by},
        "progress": [[1, 2, "1 to go"], [2, 2, "0 to go"]],
        "logs": ["step 1 of 2", "step 2 of 2"],
    }
