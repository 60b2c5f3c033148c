"""DESIGN section 7: how a session lives, sleeps, wakes and ends, as its client sees it."""

from pathlib import Path
from typing import Final

import anyio
import pytest

from sessionproxy.core.session import Session
from sessionproxy.core.state import EndReason, SessionState, StopReason
from tests.rig.embedded import SCRIPTED, Embedded, embedded, gone, lives, scripted, session, until
from tests.rig.http import Client, Json, calling, connect, http, notification

FAULT: Final = "sessionproxy/fault"
LOSS: Final = "sessionproxy/loss"
SOON: Final = 0.05
"""Seconds of an idle limit that is to run out at the reaper's next look."""


def only_session(proxy: Embedded) -> Session:
    (found,) = (*proxy.manager.registry.awake(), *proxy.manager.registry.asleep())
    return found


async def asleep(proxy: Embedded) -> Session:
    """Wait until the only session sleeps; no process and no directory of it may be left then."""
    found = only_session(proxy)
    await until(lambda: found.state is SessionState.ASLEEP)
    assert proxy.processes() == []
    assert proxy.session_dirs() == []
    return found


async def call(client: Client, **more: object) -> Json:
    return await client.request("tools/call", calling(**more))


def is_told(answer: Json) -> bool:
    """Whether a call was not executed, because it was told of a loss instead."""
    fault = answer.get("result", {}).get("_meta", {}).get(FAULT, {})
    return fault == {"kind": "state_lost", "outcome": "not_executed"}


# -- DELETE ----------------------------------------------------------------------------------------


async def test_delete_ends_the_session_and_its_whole_tree() -> None:
    """DESIGN 5.6: detached descendants too; 2025-11-25 basic/transports#session-management."""
    async with session() as (proxy, client):
        found = await client.do(
            {"spawn": []}, {"spawn": ["session"]}, {"spawn": ["session", "holds"]}
        )
        pids = (found["pid"], *found["children"])
        assert all(map(lives, pids))
        assert (await client.delete()).status_code == 204
        assert (await client.post(notification("x"))).status_code == 404
        assert (await client.delete()).status_code == 404
        await gone(*pids)
        await until(lambda: len(proxy.manager.registry) == 0)
        assert proxy.session_dirs() == []


async def test_delete_fails_the_calls_in_flight() -> None:
    """FAULTS F44: in-flight gets an error."""
    async with session() as (_, client):
        async with client.doing({"log": ""}, {"wait": "never"}, number=7) as streamed:
            await streamed.message()
            answers: list[Json] = []

            async def plain() -> None:
                answers.append(
                    await client.request("x/y", {"_meta": {"steps": [{"wait": "never"}]}})
                )

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(plain)
                await client.do({"tells": "seen"})  # comes after it, on the same pipe
                await client.delete()
            answers.append(await streamed.answer())
    assert [answer["id"] for answer in answers] == [1, 7]
    assert all("ended" in answer["error"]["message"] for answer in answers)


async def test_delete_of_a_sleeping_session_is_final() -> None:
    """DESIGN 7: DELETE, max age and kill are final."""
    async with session(idle=SOON) as (proxy, client):
        await asleep(proxy)
        assert (await client.delete()).status_code == 204
        assert (await client.post(notification("x"))).status_code == 404


# -- idle, and waking ------------------------------------------------------------------------------


async def test_an_idle_backend_stops_and_the_next_call_is_told_exactly_once() -> None:
    """DESIGN 7 (`tell`), FAULTS F50."""
    async with session(idle=SOON) as (proxy, client):
        await client.do()
        sleeper = await asleep(proxy)
        assert sleeper.stop_reason is StopReason.IDLE
        told = await call(client)
        assert is_told(told)
        text = told["result"]["content"][0]["text"]
        assert "state was lost" in text
        assert "idle" in text
        assert "fresh backend is ready" in text
        assert (await client.do())["count"] == 1  # the first that this backend has executed


async def test_calls_that_arrive_before_the_telling_was_written_are_all_told() -> None:
    """DESIGN 7: one of them alone would let the others run on lost state."""
    async with session(idle=SOON) as (proxy, client):
        await asleep(proxy)
        answers: list[Json] = []

        async def one() -> None:
            answers.append(await call(client))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(one)
        assert is_told(answers[0])
        executed = [answer for answer in answers if not is_told(answer)]
        assert [a["result"]["structuredContent"]["count"] for a in executed] == list(
            range(1, len(executed) + 1)
        )
        assert (await client.do())["count"] == len(executed) + 1


@pytest.mark.parametrize("method", ["resources/read", "prompts/get"])
async def test_methods_that_use_state_but_are_no_tools_are_told_by_an_error(method: str) -> None:
    """DESIGN 7: else -32603, with the fault in `data`."""
    async with session(idle=SOON) as (proxy, client):
        await asleep(proxy)
        error = (await client.request(method, {"name": "x"}))["error"]
        assert error["code"] == -32603
        assert error["data"][FAULT] == {"kind": "state_lost", "outcome": "not_executed"}
        assert (await client.request(method, {"name": "x"}))["result"]["count"] == 1


async def test_methods_that_use_no_state_are_served_and_the_telling_waits() -> None:
    """DESIGN 7: only `tools/call`, `resources/read` and `prompts/get` are held back."""
    async with session(idle=SOON) as (proxy, client):
        await asleep(proxy)
        assert "result" in await client.request("tools/list")
        assert is_told(await call(client))


async def test_a_telling_that_did_not_reach_its_client_is_repeated() -> None:
    """DESIGN 5.12: lost state is never silent."""
    slow = scripted(on={"initialize": [{"sleep": 0.2}]})
    async with session(slow, idle=SOON) as (proxy, client):
        sleeper = await asleep(proxy)
        with anyio.move_on_after(0.05):
            await call(client)
        await until(lambda: sleeper.state is SessionState.READY or is_asleep(sleeper))
        assert is_told(await call(client))


def is_asleep(session: Session) -> bool:
    return session.state is SessionState.ASLEEP


async def test_with_annotate_the_call_runs_and_a_note_is_added_once() -> None:
    """DESIGN 7 (`annotate`)."""
    async with session(idle=SOON, on_loss="annotate") as (proxy, client):
        await asleep(proxy)
        result = (await call(client))["result"]
        assert result["structuredContent"]["count"] == 1
        assert result["_meta"][LOSS]["reason"] == "idle"
        assert "state was lost" in result["content"][-1]["text"]
        assert len(result["content"]) == 2
        assert "_meta" not in (await call(client))["result"]


async def test_with_not_found_an_idle_session_is_over() -> None:
    """DESIGN 7 (`not-found`): the client opens a new one (404)."""
    async with session(idle=SOON, on_loss="not-found") as (proxy, client):
        await until(lambda: len(proxy.manager.registry) == 0)
        assert (await client.post(notification("x"))).status_code == 404
        assert proxy.session_dirs() == []


async def test_waking_brings_a_backend_to_where_its_client_believes_it_is() -> None:
    """DESIGN 7: the stored `initialize`; log level and subscriptions are replayed."""
    async with session(idle=0.7) as (proxy, client):
        for level in ("debug", "error"):
            await client.request("logging/setLevel", {"level": level})
        for uri in ("a", "b", "c"):
            await client.request("resources/subscribe", {"uri": uri})
        await client.request("resources/unsubscribe", {"uri": "b"})
        await client.request(
            "resources/subscribe",
            {"uri": "refused", "_meta": {"steps": [{"replies": {"error": {"code": 1}}}]}},
        )
        before = (await client.do({"tells": "seen"}))["seen"]
        await asleep(proxy)
        await call(client)
        after = (await client.do({"tells": "seen"}))["seen"]
    assert after[0] == before[0]
    assert [(message["method"], message.get("params")) for message in after[1:-1]] == [
        ("notifications/initialized", None),
        ("logging/setLevel", {"level": "error"}),
        ("resources/subscribe", {"uri": "a"}),
        ("resources/subscribe", {"uri": "c"}),
    ]


async def test_what_needs_no_backend_wakes_none() -> None:
    """DESIGN 7: the next request does; a stream, a notification or a late answer does not."""
    async with session(idle=SOON) as (proxy, client):
        sleeper = await asleep(proxy)
        assert (await client.notify("notifications/roots/list_changed")).status_code == 202
        assert (await client.respond(1, result={})).status_code == 202
        async with client.listen() as stream:
            assert stream.status == 200
        assert is_asleep(sleeper)
        assert proxy.processes() == []


async def test_a_backend_that_cannot_be_woken_is_an_error_and_the_session_sleeps_on(
    tmp_path: Path,
) -> None:
    """DESIGN 7, 11: its id stays, and the next request tries again."""
    flag = tmp_path / "broken"
    command = ("/bin/sh", "-c", f'test -e "{flag}" && exit 3; exec "$0" "$@"', *SCRIPTED)
    async with session(command, idle=SOON) as (proxy, client):
        await asleep(proxy)
        flag.touch()
        answer = await call(client)
        fault = answer["result"]["_meta"][FAULT]
        assert (fault["kind"], fault["exitCode"]) == ("backend_start_failed", 3)
        await asleep(proxy)
        flag.unlink()
        assert is_told(await call(client))
        assert (await client.do())["count"] == 1


# -- what is idle, and what is not -----------------------------------------------------------------


async def test_a_call_longer_than_the_idle_limit_is_never_cut_by_it() -> None:
    """DESIGN 7, FAULTS F46: it holds a lease, also when its client has hung up."""
    async with session(idle=SOON) as (proxy, client):
        async with client.doing({"log": ""}, {"sleep": 1.2}) as incoming:
            await incoming.message()
            assert "isError" not in (await incoming.answer())["result"]
        async with client.doing({"log": ""}, {"wait": "never"}) as incoming:
            await incoming.message()
        served = only_session(proxy)
        await anyio.sleep(1.2)  # two looks of the reaper
        assert served.state is SessionState.READY
        assert served.leases == 1


async def test_an_open_get_stream_keeps_no_backend_and_survives_its_stop() -> None:
    """DESIGN 7: an open GET stream is not a lease."""
    async with session(idle=SOON) as (proxy, client), client.listen() as stream:
        await asleep(proxy)
        assert is_told(await call(client))
        await client.do({"then": [{"log": "from the fresh one"}]})
        assert (await stream.message())["params"]["data"] == "from the fresh one"


async def test_a_session_whose_client_closed_its_stream_stops_after_linger() -> None:
    """DESIGN 7: disconnected."""
    async with session(linger=SOON) as (proxy, client):
        async with client.listen():
            pass
        assert (await asleep(proxy)).stop_reason is StopReason.DISCONNECTED
        told = await call(client)
        assert is_told(told)
        assert "disconnected" in told["result"]["content"][0]["text"]


async def test_a_client_that_came_back_in_time_is_not_disconnected() -> None:
    """DESIGN 7: `linger` seconds without a new request."""
    async with session(linger=SOON) as (proxy, client):
        async with client.listen():
            pass
        async with client.listen():
            await anyio.sleep(1.2)  # two looks of the reaper
            assert only_session(proxy).state is SessionState.READY


async def test_max_age_ends_a_session_whatever_it_does() -> None:
    """DESIGN 7."""
    async with session(max_age=0.3) as (proxy, client):
        aged = only_session(proxy)
        async with client.doing({"log": ""}, {"wait": "never"}) as incoming:
            assert "error" in await incoming.answer()
        assert aged.end_reason is EndReason.MAX_AGE
        assert (await client.post(notification("x"))).status_code == 404


@pytest.mark.parametrize(("idle", "header"), [(300, "300"), (0.5, "0.5"), (0, None)])
async def test_the_idle_limit_is_told_when_a_session_opens(idle: float, header: str | None) -> None:
    """DESIGN 7: a response header on `initialize`."""
    async with embedded(idle=idle) as proxy, http() as pool:
        response = await Client(pool, proxy.url).initialize()
        assert response.headers.get("sessionproxy-idle-timeout") == header


async def test_the_oldest_of_too_many_sleepers_is_evicted() -> None:
    """DESIGN 7: `max_asleep`."""
    async with embedded(max_asleep=1) as proxy:
        async with connect(proxy.url) as old, connect(proxy.url) as new:
            for client, left in ((old, 1), (new, 0)):
                await client.do({"then": [{"exit": 0}]})
                await until(lambda left=left: len(proxy.manager.registry.awake()) == left)
            assert (await old.post(notification("x"))).status_code == 404
            assert is_told(await call(new))


# -- crashes ---------------------------------------------------------------------------------------


async def test_a_backend_that_ends_while_idle_is_noticed_and_not_replaced_before_a_request() -> (
    None
):
    """FAULTS F07: noticed by pidfd, no auto-respawn."""
    async with session() as (proxy, client):
        await client.do({"then": [{"exit": 9}]})
        sleeper = await asleep(proxy)
        assert sleeper.stop_reason is StopReason.BACKEND_EXIT
        told = await call(client)
        assert is_told(told)
        assert "exit status 9" in told["result"]["content"][0]["text"]
        assert (await client.do())["count"] == 1


async def test_after_a_crash_in_a_call_the_next_one_is_told_and_the_one_after_runs() -> None:
    """FAULTS F06, F50."""
    async with session() as (_, client):
        crashed = await client.request("tools/call", calling({"kill": "SIGKILL"}))
        assert crashed["result"]["_meta"][FAULT]["kind"] == "backend_gone"
        assert is_told(await call(client))
        assert (await client.do())["count"] == 1


async def test_a_crash_before_initialized_is_slept_over() -> None:
    """FAULTS F04: the session sleeps; the next call wakes it."""
    command = scripted(initialize=[{"then": [{"exit": 0}]}])
    async with embedded(command) as proxy, http() as pool:
        client = Client(pool, proxy.url)
        await client.initialize()
        await asleep(proxy)
        assert (await client.notify("notifications/initialized")).status_code == 202
        assert "backend" in str(await call(client))


async def test_what_a_crashed_leader_leaves_behind_is_ended() -> None:
    """DESIGN 5.6, 10: the tree is always swept."""
    async with session() as (proxy, client):
        found = await client.do(
            {"spawn": []}, {"spawn": ["session"]}, {"then": [{"kill": "SIGKILL"}]}
        )
        await gone(*found["children"])
        await asleep(proxy)


# -- starting --------------------------------------------------------------------------------------


async def test_a_client_that_hangs_up_while_its_backend_starts_leaves_nothing() -> None:
    """DESIGN 5.2, FAULTS F39."""
    async with embedded(scripted(initialize=[{"wait": "never"}])) as proxy, http() as pool:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Client(pool, proxy.url).initialize)
            await until(lambda: len(proxy.processes()) == 1)
            tasks.cancel_scope.cancel()
        await until(lambda: len(proxy.manager.registry) == 0)
        assert proxy.processes() == []
        assert proxy.session_dirs() == []
        assert proxy.manager.admission.running == 0


async def test_one_start_serves_all_who_wait_for_it() -> None:
    """DESIGN 5.2: two first calls at once start one."""
    async with session(idle=SOON) as (proxy, client):
        await asleep(proxy)
        pids: set[int] = set()

        async def look() -> None:
            answer = await client.request("tools/list")
            pids.add(answer["result"]["pid"])

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(look)
        assert len(pids) == 1
        assert proxy.processes() == list(pids)


async def test_a_session_takes_a_warm_spare_and_another_is_started() -> None:
    """DESIGN 10: so that a first call does not wait for a runtime."""
    async with embedded(warm=1) as proxy:
        await until(lambda: len(proxy.processes()) == 1)
        spare = proxy.processes()
        async with connect(proxy.url) as client:
            assert [(await client.do())["pid"]] == spare
            await until(lambda: len(proxy.processes()) == 2)
            assert proxy.manager.admission.running == 1  # spares are not counted
