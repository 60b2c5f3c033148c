"""What a client is told when its backend fails, and how its session goes on.

Neighbours: `test_backends` and `test_pipes`.
"""

from sessionproxy.core.session import Session
from sessionproxy.core.state import SessionState, StopReason
from tests.rig.embedded import Embedded, until
from tests.rig.history import FAULT
from tests.rig.http import Json, calling
from tests.rig.recorded import Recorded


def fault_of(answer: Json) -> Json:
    """The fault in a failed answer: of a tool in `_meta`, else in the error's data."""
    if "result" in answer:
        assert answer["result"]["isError"] is True
        return answer["result"]["_meta"][FAULT]
    assert answer["error"]["code"] == -32603
    return answer["error"]["data"][FAULT]


def text_of(answer: Json) -> str:
    if "result" in answer:
        return answer["result"]["content"][0]["text"]
    return answer["error"]["message"]


def session_of(proxy: Embedded, client: Recorded) -> Session:
    sessions = (*proxy.manager.registry.awake(), *proxy.manager.registry.asleep())
    return next(session for session in sessions if session.identity.key == client.id)


async def asleep(proxy: Embedded, client: Recorded, *, seconds: float) -> StopReason | None:
    """Wait until a client's session sleeps and only the bystander has a backend; say why."""
    session = session_of(proxy, client)
    await until(lambda: session.state is SessionState.ASLEEP, seconds=seconds)
    assert proxy.manager.admission.running == 1
    return session.stop_reason


async def call(client: Recorded, *steps: Json, number: int = 1) -> Json:
    return await client.request("tools/call", calling(*steps), number=number)


async def is_told_and_goes_on(client: Recorded) -> None:
    """FAULTS F50: the next call is told of the loss, and the one after it runs on a fresh one."""
    told = await call(client)
    assert fault_of(told) == {"kind": "state_lost", "outcome": "not_executed"}
    assert (await client.do())["count"] == 1
