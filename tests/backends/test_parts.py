"""A server's part in a session of several: its end is its own, and is told with its name."""

from pathlib import Path
from typing import Final

import anyio
import pytest

from sessionproxy.core.state import EndReason, SessionState
from tests.rig.embedded import SCRIPTED, Embedded, embedded, scripted, until
from tests.rig.http import Json, connect
from tests.rig.several import servers

STUCK: Final = scripted(lives=[{"initialize": [{"wait": "ever"}]}, {}])
"""A server whose first start takes for ever."""


async def kill(proxy: Embedded, state: SessionState) -> None:
    """End the part of the first server, as an operator does, once it is in this state."""
    manager = proxy.app.running.members[0].manager
    await until(lambda: [each.state for each in manager.registry.awake()] == [state])
    (session,) = manager.registry.awake()
    manager.end(session, EndReason.KILLED)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("state", [SessionState.STARTING, SessionState.READY])
async def test_a_part_that_is_ended_fails_its_calls_by_name_and_the_session_goes_on(
    state: SessionState, tmp_path: Path
) -> None:
    """DESIGN 11: what is the whole session's, a 404 with "session not found", would have the client
    throw away all its servers."""
    one = {"command": STUCK if state is SessionState.STARTING else SCRIPTED}
    ledger: Json = {"env": {"TESTS_LEDGER": f"{tmp_path}/ledger"}}
    async with embedded(servers(one={**one, **ledger}, two=SCRIPTED)) as proxy:
        async with connect(proxy.url) as client:
            before = await client.do(name="two_do")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(kill, proxy, state)
                async with client.doing({"wait": "ever"}, name="one_do") as incoming:
                    assert incoming.status == 200
                    failed = (await incoming.answer())["result"]
                assert failed["isError"]
                assert failed["content"][0]["text"] == "Server 'one': It was ended."
                assert failed["_meta"]["sessionproxy/fault"]["kind"] == "backend_gone"
            after = await client.do(name="two_do")
            assert (after["pid"], after["count"]) == (before["pid"], 2)
            assert (await client.do(name="one_do"))["count"] == 1
