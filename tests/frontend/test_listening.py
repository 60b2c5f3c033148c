"""What modern clients hear of changes, whatever the era of the server (2026-07-28
basic/patterns/subscriptions). The server is a real one, with the SDK's own idea of each era.

That changed lists are told, the conformance suite looks after (`tests.clients`)."""

import anyio
import pytest

from sessionproxy.frontend import listening
from tests.rig.embedded import embedded, scripted, until
from tests.rig.http import Json, http
from tests.rig.modern import PREFIX, Modern
from tests.rig.proxy import EVERYTHING

WATCHED = "test://watched-resource"
RESOURCE = {"resourceSubscriptions": [WATCHED]}
UPDATED = "notifications/resources/updated"

both_eras = pytest.mark.parametrize("era", ["handshake", "modern"])
"""Of the server."""


async def call(client: Modern, tool: str) -> None:
    response = await client.post("tools/call", {"name": tool, "arguments": {}})
    answer: Json = response.json()
    assert not answer["result"].get("isError"), answer


@both_eras
async def test_a_stream_opened_before_its_conversation_hears_of_a_resource(era: str) -> None:
    """DESIGN 9: `subscriptions/listen` starts nothing; the conversation's backend is subscribed to
    what its listeners wait for, before the call that starts it."""
    async with embedded((*EVERYTHING, "--era", era)) as proxy, http() as pool:
        client = Modern(pool, proxy.url)
        async with client.open("subscriptions/listen", {"notifications": RESOURCE}) as stream:
            assert (await stream.message())["params"]["notifications"] == RESOURCE
            assert not proxy.manager.registry.awake()
            await call(client, "test_trigger_resource_updated")
            told = await stream.until(UPDATED)
        assert told["params"] == {"uri": WATCHED, "_meta": {f"{PREFIX}subscriptionId": 1}}


@both_eras
async def test_a_stream_opened_after_its_conversation_hears_of_a_resource(era: str) -> None:
    """DESIGN 9. Only the client that listens: another conversation's resource is another one."""
    async with embedded((*EVERYTHING, "--era", era)) as proxy, http() as pool:
        ours, theirs = (Modern(pool, f"{proxy.url}/s/{name}") for name in ("ours", "theirs"))
        await call(ours, "test_simple_text")
        async with ours.open("subscriptions/listen", {"notifications": RESOURCE}) as stream:
            await stream.message()
            await call(theirs, "test_trigger_resource_updated")
            await call(ours, "test_trigger_resource_updated")
            heard = [await stream.message()]
        await call(ours, "test_trigger_resource_updated")  # with nobody there who hears of it
        assert [message["method"] for message in heard] == [UPDATED]


async def test_a_subscription_that_is_never_answered_is_not_waited_for_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lists that it hears of besides do not depend on that."""
    monkeypatch.setattr(listening, "PATIENCE", 0.1)
    nothing: Json = {}
    silent = scripted(on={"resources/subscribe": [{"replies": nothing}]})
    async with embedded(silent) as proxy, http() as pool:
        client = Modern(pool, proxy.url)
        await client.call()
        async with client.open("subscriptions/listen", {"notifications": RESOURCE}) as stream:
            assert (await stream.message())["params"]["notifications"] == RESOURCE
        assert proxy.manager.registry.awake()


async def test_a_subscription_that_is_never_answered_keeps_no_session_awake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DESIGN 9: a stream is no lease; and once it has closed nobody waits for that answer."""
    monkeypatch.setattr(listening, "PATIENCE", 0.1)
    nothing: Json = {}
    silent = scripted(on={"resources/subscribe": [{"replies": nothing}]})
    async with embedded(silent, idle=0.2) as proxy, http() as pool:
        client = Modern(pool, proxy.url)
        await client.call()
        async with client.open("subscriptions/listen", {"notifications": RESOURCE}) as stream:
            await stream.message()
        await until(lambda: not proxy.manager.registry.awake())


async def test_a_stream_says_what_it_hears_of_once_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """2026-07-28 basic/patterns/subscriptions#acknowledgment; DESIGN 5.12: who acts on it misses
    nothing. What the backend tells meanwhile comes behind it."""
    monkeypatch.setattr(listening, "PATIENCE", 1000)
    note = {"method": UPDATED, "params": {"uri": WATCHED}}
    slow = scripted(on={"resources/subscribe": [{"note": note}, {"wait": "go"}]})
    async with embedded(slow) as proxy, http() as pool:
        client = Modern(pool, proxy.url)
        await client.call()
        heard: list[Json] = []
        async with (
            client.open("subscriptions/listen", {"notifications": RESOURCE}) as stream,
            anyio.create_task_group() as tasks,
        ):

            async def listen() -> None:
                while len(heard) < 2:
                    heard.append(await stream.message())

            tasks.start_soon(listen)
            seen: Json = {}
            while "resources/subscribe" not in str(seen):
                seen = await client.call({"tells": "seen"})
            await anyio.sleep(0.1)  # what was sent already would be there by then
            assert not heard
            await client.call({"release": "go"})
        first, second = heard
        assert first["method"] == "notifications/subscriptions/acknowledged"
        assert first["params"]["notifications"] == RESOURCE
        assert second["method"] == UPDATED
