"""The protocol's own conformance suite, against the proxy in front of a stdio server.

Clients of both eras, and servers of both, of one, and of the other. Only what the suite wrote to
its results directory counts. Where no proxy can make up for what a server of the handshake era does
not say, the scenario is named here with what the suite finds, and found to be just that.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import anyio
import pytest

from tests.rig.proxy import EVERYTHING, ROOT, proxy

PACKAGE: Final = ROOT / "tests/node/node_modules/@modelcontextprotocol/conformance"


@dataclass(frozen=True)
class Requirements:
    """What the suite requires of a server of one revision."""

    required: tuple[str, ...]
    pending: tuple[str, ...]
    """Not scored, since the suite's own server does not pass them all; ours does."""
    not_ours: tuple[str, ...] = ()
    """Run besides, for servers with the tasks extension, or that hang up on their own streams."""


HANDSHAKE: Final = "2025-11-25"
MODERN: Final = "2026-07-28"

REQUIREMENTS: Final = {
    HANDSHAKE: Requirements(
        required=(
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
        ),
        pending=("server-session-lifecycle", "json-schema-2020-12"),
        not_ours=("server-sse-polling",),
    ),
    MODERN: Requirements(
        required=(
            "server-stateless",
            "completion-complete",
            "tools-list",
            "tools-call-simple-text",
            "tools-call-image",
            "tools-call-audio",
            "tools-call-embedded-resource",
            "tools-call-mixed-content",
            "tools-call-error",
            "tools-call-with-progress",
            "server-sse-multiple-streams",
            "resources-list",
            "resources-read-text",
            "resources-read-binary",
            "resources-templates-read",
            "sep-2164-resource-not-found",
            "prompts-list",
            "prompts-get-simple",
            "prompts-get-with-args",
            "prompts-get-embedded-resource",
            "prompts-get-with-image",
            "dns-rebinding-protection",
            "caching",
            "input-required-result-basic-elicitation",
            "input-required-result-basic-sampling",
            "input-required-result-basic-list-roots",
            "input-required-result-request-state",
            "input-required-result-multiple-input-requests",
            "input-required-result-multi-round",
            "input-required-result-missing-input-response",
            "input-required-result-non-tool-request",
            "input-required-result-result-type",
            "input-required-result-unsupported-methods",
            "input-required-result-tampered-state",
            "input-required-result-capability-check",
            "input-required-result-ignore-extra-params",
            "input-required-result-validate-input",
        ),
        pending=(
            "json-schema-2020-12",
            "http-header-validation",
            "http-custom-header-server-validation",
        ),
        not_ours=(
            "tasks-lifecycle",
            "tasks-capability-negotiation",
            "tasks-wire-fields",
            "tasks-request-state-removal",
            "tasks-mrtr-input",
            "tasks-request-headers",
            "tasks-dispatch-and-envelope",
            "tasks-status-notifications",
            "tasks-required-task-error",
            "tasks-mrtr-composition",
        ),
    ),
}

UNBRIDGEABLE: Final = {
    # A request of the handshake era has an id and no name. The suite wants the question under the
    # key "user_name", which the server never wrote; every other scenario takes the key it is given.
    "input-required-result-basic-elicitation": "sep-2322-elicitation-incomplete: "
    'inputRequests missing expected key "user_name"',
    # Here the first request of all brings an answer to "user_name", and is to be complete with it.
    # What a server of the handshake era will ask is not known before it asks, so this would be to
    # answer a question that the user has not seen.
    "input-required-result-ignore-extra-params": "sep-2322-ignore-unexpected-params: "
    "Server did not return complete result when valid inputResponses were provided alongside extra "
    "keys. Servers SHOULD ignore information they do not recognize.",
}
"""What of `MODERN` no proxy passes for a server of the handshake era, and what the suite finds."""

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
@pytest.mark.timeout(220)
@pytest.mark.parametrize(
    ("revision", "era"),
    [
        # It is asked what a handshake server is asked, for most of a minute.
        pytest.param(
            *(HANDSHAKE, "both"),
            id="handshake clients, server of both eras",
            marks=pytest.mark.slow,
        ),
        pytest.param(HANDSHAKE, "handshake", id="handshake clients, handshake server"),
        pytest.param(HANDSHAKE, "modern", id="handshake clients, modern server"),
        pytest.param(MODERN, "both", id="modern clients, server of both eras"),
        pytest.param(MODERN, "handshake", id="modern clients, handshake server"),
    ],
)
async def test_every_required_scenario_passes_but_for_what_the_server_never_said(
    revision: str, era: str, tmp_path: Path
) -> None:
    """@modelcontextprotocol/conformance 0.2.0-alpha.12, requirements/*.yaml, `server`: 30 of 30 at
    2025-11-25, 37 of 37 at 2026-07-28, 35 of them with a server of the handshake era alone."""
    node = shutil.which("node")
    assert node is not None
    async with proxy((*EVERYTHING, "--era", era)) as running:
        with anyio.fail_after(200):
            ended = await anyio.run_process(
                [
                    *(node, str(PACKAGE / "dist/index.js"), "server", "--url", running.url),
                    *("--requirements", revision, "--output-dir", str(tmp_path)),
                ],
                check=False,
                stderr=subprocess.STDOUT,
                env=dict(os.environ),
            )
    wanted = REQUIREMENTS[revision]
    apart = UNBRIDGEABLE if (revision, era) == (MODERN, "handshake") else {}
    checks = checks_in(tmp_path)
    # It ran what it requires, no more and no less.
    assert checks.keys() == {*wanted.required, *wanted.pending, *wanted.not_ours}
    passing = dict.fromkeys((*wanted.required, *wanted.pending), "passed")
    assert {name: outcome(checks[name]) for name in passing} == {**passing, **apart}
    # And it finds itself that nothing failed: what is only recommended it takes for a warning.
    failed = [name for name in apart if any(c["status"] == "FAILURE" for c in checks[name])]
    assert ended.returncode == (1 if failed else 0), ended.stdout.decode()


@pytest.mark.node
@pytest.mark.parametrize(("revision", "count"), [(HANDSHAKE, 30), (MODERN, 37)])
def test_what_is_required_is_what_the_suite_itself_requires_of_a_server(
    revision: str, count: int
) -> None:
    """The `server` list of requirements/*.yaml, so that a newer suite is noticed."""
    text = (PACKAGE / f"requirements/{revision}.yaml").read_text()
    section = re.search(r"^server:\n((?:  - .+\n)+)", text, re.MULTILINE)
    assert section is not None
    found = tuple(re.findall(r"^  - (\S+)$", section[1], re.MULTILINE))
    assert found == REQUIREMENTS[revision].required
    assert len(found) == count
