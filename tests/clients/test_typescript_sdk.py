"""The TypeScript SDK's clients, unmodified: what most desktop clients and editors are built on.

`tests/node/client.mjs` is the program for its first major version, which knows the handshake, and
`tests/node/modern.mjs` for its second, which is told to speak 2026-07-28. They print what they saw.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

import anyio
import pytest

from tests.rig.processes import Census
from tests.rig.proxy import DEMO, EVERYTHING, ROOT, Proxy, proxy

CLIENT: Final = ROOT / "tests/node/client.mjs"
MODERN: Final = ROOT / "tests/node/modern.mjs"

pytestmark = pytest.mark.node


async def seen_by(scenario: str, backend: Sequence[str]) -> dict[str, Any]:
    """Return what the client saw of a proxy in front of `backend`, whose sessions it ended."""
    async with proxy(backend) as running:
        seen = await printed(CLIENT, scenario, running)
        await Census(running.state_dir).gone(within=10)
    return seen


async def printed(program: Path, scenario: str, running: Proxy) -> dict[str, Any]:
    node = shutil.which("node")
    assert node is not None
    with anyio.fail_after(40):
        ended = await anyio.run_process([node, str(program), scenario, running.url], check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    return cast("dict[str, Any]", json.loads(ended.stdout))


async def test_two_clients_at_once_have_state_questions_progress_and_logs_of_their_own() -> None:
    """@modelcontextprotocol/sdk 1.32.2; DESIGN section 5, 1."""
    assert await seen_by("notebooks", DEMO) == {
        "idsDiffer": True,
        "version": "2025-11-25",
        "alice": notebook_of("alice", 1),
        "bob": notebook_of("bob", 100),
    }


def notebook_of(name: str, by: int) -> dict[str, object]:
    """Return what a user sees who counts by this number."""
    return {
        "counts": counts_by(by),
        "greeting": f"Hello, {name}!",
        "asked": ["Who are you?"],
        "variables": {name: by},
        "progress": [[1, 3, "2 to go"], [2, 3, "1 to go"], [3, 3, "0 to go"]],
        "logs": ["step 1 of 3", "step 2 of 3", "step 3 of 3"],
        "errors": [],
    }


def counts_by(by: int) -> list[str]:
    """Return what ten calls get."""
    return [str(by * n) for n in range(1, 11)]


async def test_sampling_elicitation_roots_prompts_and_notifications_pass() -> None:
    """@modelcontextprotocol/sdk 1.32.2; 2025-11-25 client/* and server/*."""
    answer = 'User response: action=accept, content={"name": "carol"}'
    assert await seen_by("everything", EVERYTHING) == {
        "server": "sessionproxy-everything",
        "sampled": "LLM response: carol's model",
        "roots": "file:///carol",
        "updated": ["test://watched-resource"],
        "added": 1,
        "listChanges": 1,
        "prompt": "Prompt with arguments: arg1='a', arg2='b'",
        "prompts": 5,
        "resources": 3,
        "asked": ["first", "second"],
        "overlapping": [answer, answer],
        "refused": -32602,
        "errors": [],
    }


async def test_a_call_whose_connection_breaks_is_taken_up_where_it_broke() -> None:
    """2025-11-25 basic/transports#resumability-and-redelivery: nothing is lost, nothing doubled,
    and the call runs once."""
    seen = await seen_by("brokenStream", DEMO)
    assert seen["resumed"] >= 1
    assert seen["posted"] == 3  # initialize, initialized, tools/call
    assert seen["progress"] == list(range(1, 13))
    assert seen["logs"] == [f"step {n} of 12" for n in range(1, 13)]
    assert seen["answer"] == "Lift-off."


async def test_a_new_client_with_the_id_and_the_last_event_takes_a_call_over() -> None:
    """2025-11-25 basic/transports#resumability-and-redelivery; the session's state is there."""
    assert await seen_by("newClient", DEMO) == {
        "answer": "Lift-off.",
        "lastLog": "step 8 of 8",
        "variables": {"x": 42},
    }


async def test_a_terminated_session_is_unknown_from_then_on_and_others_stay() -> None:
    """2025-11-25 basic/transports#session-management: 404 for whoever still has the id."""
    assert await seen_by("terminated", DEMO) == {
        "idAfterwards": None,
        "called": 404,
        "endedAgain": 404,
        "other": "1",
    }


# -- 2026-07-28 ------------------------------------------------------------------------------------


async def test_two_conversations_of_a_modern_client_at_once_by_their_handles() -> None:
    """@modelcontextprotocol/client 2.3.1; DESIGN section 6. Its requests carry each handle in a
    header, too (`x-mcp-header`)."""
    async with proxy(DEMO, "--handles", "optional") as running:
        assert await printed(MODERN, "handles", running) == {
            "ones": {"counts": [*map(str, range(1, 11)), "Hello, carol!"], "late": True},
            "hundreds": {
                "counts": [*map(str, range(100, 1001, 100)), "Hello, carol!"],
                "late": True,
            },
            "errors": [],
        }
        await Census(running.state_dir).gone(within=10)


async def test_a_modern_client_gets_all_that_a_handshake_server_asks_and_tells() -> None:
    """@modelcontextprotocol/client 2.3.1; DESIGN section 9."""
    answer = 'User response: action=accept, content={"name": "dave"}'
    async with proxy((*EVERYTHING, "--era", "handshake")) as running:
        assert await printed(MODERN, "everything", running) == {
            "era": "2026-07-28",
            "server": "sessionproxy-everything",
            "updated": ["test://watched-resource"],
            "listChanged": True,
            "waited": "aborted",
            "cancelled": "It was cancelled.",
            "progress": [0, 50, 100],
            "overlapping": [answer, answer],
            "sampled": "LLM response: dave's model",
            "sampledWithTools": "toolUse",
            "roots": "file:///dave",
            "atOnce": "3 answers",
            "rounds": "{'name': 'dave'} {'name': 'dave'}",
            "prompt": 'Context: {"name": "dave"}',
            "completions": ["paris", "park", "party"],
            "header": "region=here",
            "refused": -32602,
            "asked": [
                "Step 1: What is your name?",
                "Step 2: What is your favorite color?",
                "What context should the prompt use?",
                "What is your name?",
                "first",
                "second",
            ],
            "errors": [],
        }
