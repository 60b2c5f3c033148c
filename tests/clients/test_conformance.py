"""The protocol's own conformance suite, against the proxy in front of a stdio server.

Only what the suite wrote to its results directory counts; there is no list of expected failures.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast

import anyio
import pytest

from tests.rig.proxy import EVERYTHING, ROOT, proxy

PACKAGE: Final = ROOT / "tests/node/node_modules/@modelcontextprotocol/conformance"
REVISION: Final = "2025-11-25"

REQUIRED: Final = (
    "server-initialize",
    "logging-set-level",
    "ping",
    "completion-complete",
    "tools-list",
    "tools-call-simple-text",
    "tools-call-image",
    "tools-call-audio",
    "tools-call-embedded-resource",
    "tools-call-mixed-content",
    "tools-call-with-logging",
    "tools-call-error",
    "tools-call-with-progress",
    "tools-call-sampling",
    "tools-call-elicitation",
    "elicitation-sep1034-defaults",
    "server-sse-multiple-streams",
    "elicitation-sep1330-enums",
    "resources-list",
    "resources-read-text",
    "resources-read-binary",
    "resources-templates-read",
    "resources-subscribe",
    "resources-unsubscribe",
    "prompts-list",
    "prompts-get-simple",
    "prompts-get-with-args",
    "prompts-get-embedded-resource",
    "prompts-get-with-image",
    "dns-rebinding-protection",
)
NOT_SCORED: Final = ("server-session-lifecycle", "json-schema-2020-12", "server-sse-polling")
"""Run and reported by the suite besides; it counts none of them."""

DIRECTORY: Final = re.compile(r"server-(.+)-\d{4}-\d\d-\d\dT[\d-]+Z")
"""How the suite names the results of a scenario."""

Checks = Mapping[str, list[dict[str, str]]]
"""By scenario: its checks, each with `id`, `status` and perhaps `errorMessage`."""


def checks_in(results: Path) -> Checks:
    found: dict[str, list[dict[str, str]]] = {}
    for path in results.glob("*/checks.json"):
        named = DIRECTORY.fullmatch(path.parent.name)
        assert named is not None, path
        found[named[1]] = cast("list[dict[str, str]]", json.loads(path.read_text()))
    return found


def outcome(checks: list[dict[str, str]]) -> str:
    """Passed is: at least one check that succeeded, and none that did anything but that."""
    judged = [check for check in checks if check["status"] != "INFO"]
    worse = [check for check in judged if check["status"] != "SUCCESS"]
    told = [f"{check['id']}: {check.get('errorMessage', check['status'])}" for check in worse]
    if not judged:
        return "nothing was checked"
    return "; ".join(told) or "passed"


@pytest.mark.node
@pytest.mark.timeout(150)
async def test_thirty_of_thirty_required_scenarios_pass_and_every_one_has_checked_something(
    tmp_path: Path,
) -> None:
    """@modelcontextprotocol/conformance 0.2.0-alpha.12, requirements/2025-11-25.yaml, `server`."""
    node = shutil.which("node")
    assert node is not None
    async with proxy(EVERYTHING) as running:
        with anyio.fail_after(140):
            ended = await anyio.run_process(
                [
                    *(node, str(PACKAGE / "dist/index.js"), "server", "--url", running.url),
                    *("--requirements", REVISION, "--output-dir", str(tmp_path)),
                ],
                check=False,
                stderr=subprocess.STDOUT,
                env=dict(os.environ),
            )
    checks = checks_in(tmp_path)
    outcomes = {name: outcome(checks.get(name, [])) for name in REQUIRED}
    assert outcomes == dict.fromkeys(REQUIRED, "passed")
    assert len(outcomes) == 30
    # The suite ran what it requires, no more and no less, and finds itself that nothing failed.
    assert checks.keys() == {*REQUIRED, *NOT_SCORED}
    said = ended.stdout.decode()
    assert re.findall(r"^Total: \d+ passed, (\d+) failed$", said, re.MULTILINE) == ["0"]
    assert ended.returncode == 0


@pytest.mark.node
def test_the_thirty_are_those_that_the_suite_itself_requires_of_a_server() -> None:
    """The `server` list of requirements/2025-11-25.yaml, so that a newer suite is noticed."""
    text = (PACKAGE / f"requirements/{REVISION}.yaml").read_text()
    section = re.search(r"^server:\n((?:  - .+\n)+)", text, re.MULTILINE)
    assert section is not None
    assert tuple(re.findall(r"^  - (\S+)$", section[1], re.MULTILINE)) == REQUIRED
