"""`--log-json`: lines about a session say which, and what it is in front of (PARITY row 31)."""

import json
import logging
from typing import Any

from sessionproxy.core.exchange import Forwarded
from sessionproxy.logs import JsonFormatter
from tests.rig.embedded import embedded, scripted, until
from tests.rig.http import calling, connect
from tests.rig.proxy import proxy

Line = dict[str, Any]


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("tests", logging.INFO, __file__, 1, text, None, None)


async def test_lines_about_a_session_have_its_label_and_its_server() -> None:
    """From its start to its end, what its backend writes included; none has the id (DESIGN 5.8)."""
    command = scripted(start=[{"stderr": ["from the backend"]}])
    async with proxy(command, "--log-json") as running, connect(running.url) as client:
        await client.do({"raw": "rubbish\n"})
        await client.request("tools/call", calling({"exit": 1}))
        await until(lambda: any("sleeps" in line for line in running.log))
        await client.delete()
        await until(lambda: any("client_delete" in line for line in running.log))
    lines: list[Line] = [json.loads(line) for line in running.log]
    about = ("starts", "stderr: from the backend", "dropped a line", "sleeps", "ended: client")
    found = [next(line for line in lines if what in line["message"]) for what in about]
    (label,) = {line["session"] for line in found}
    assert {line["server"] for line in found} == {"default"}
    assert all(label in line["message"] for line in found)
    assert client.id not in "".join(running.log)


async def test_a_line_of_a_spare_that_a_session_took_has_its_label() -> None:
    """It was started on nobody's behalf, and before the session there was none to name."""
    command = scripted(initialize=[{"raw": "rubbish\n"}, {"stderr": ["from the backend"]}])
    options = ("--log-json", "--warm", "1")
    async with proxy(command, *options) as running, connect(running.url):
        await until(lambda: any("from the backend" in line for line in running.log))
    lines: list[Line] = [json.loads(line) for line in running.log]
    about = ("starts", "from the backend", "dropped a line")
    found = [next(line for line in lines if what in line["message"]) for what in about]
    assert len({line["session"] for line in found}) == 1


async def test_a_line_that_a_hook_writes_has_the_session_of_the_request() -> None:
    """Each its own (DESIGN 8)."""
    written: list[tuple[bytes, Line]] = []

    def hook(message: Forwarded) -> None:
        if message.method == "tools/call" and message.kind == "request":
            line = json.loads(JsonFormatter().format(record("seen")))
            written.append((bytes(message.body or b""), line))

    async with (
        embedded(observers=[hook]) as running,
        connect(running.url) as alice,
        connect(running.url) as bob,
    ):
        await alice.do(echo="alice")
        await bob.do(echo="bob")
        labels = [session.label for session in running.manager.registry.awake()]
    assert [line["session"] for _, line in written] == labels
    assert [b"alice" in body for body, _ in written] == [True, False]
    assert {line["server"] for _, line in written} == {"default"}


def test_a_line_that_is_about_no_session_has_none() -> None:
    line = json.loads(JsonFormatter().format(record("hello")))
    assert line.keys() == {"time", "level", "logger", "message"}
