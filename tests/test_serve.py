"""The proxy as an application of its own, inside others, and as a process with signals."""

import signal
import subprocess
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import anyio
import httpx2
import psutil
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from sessionproxy.app import ProxyApp, http_app
from sessionproxy.config import ConfigError
from sessionproxy.core.exchange import Forwarded
from tests.rig.embedded import SCRIPTED, gone, lives, processes_of, scripted, served, until
from tests.rig.http import PATIENCE, Client, calling, connect, http, request
from tests.rig.proxy import PYTHON, ROOT, Proxy, proxy, start


@pytest.fixture
def app(tmp_path: Path) -> ProxyApp:
    return http_app(SCRIPTED, state_dir=str(tmp_path / "s"))


# -- inside others ---------------------------------------------------------------------------------


async def _hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def in_starlette(app: ProxyApp) -> Starlette:
    routes = [Route("/hello", _hello), Mount("/tools", app=app)]
    return Starlette(routes=routes, lifespan=app.lifespan)


def in_fastapi(app: ProxyApp) -> FastAPI:
    outer = FastAPI(lifespan=app.lifespan)
    outer.mount("/tools", app)
    outer.add_api_route("/hello", lambda: "hello")
    return outer


@pytest.mark.parametrize("mounted", [in_starlette, in_fastapi])
async def test_it_serves_where_it_is_mounted_with_its_lifespan(
    mounted: Callable[[ProxyApp], Starlette], app: ProxyApp, tmp_path: Path
) -> None:
    """README: `lifespan=proxy.lifespan`; the rest of the application is untouched."""
    async with served(mounted(app), lifespan=True) as base:
        async with connect(f"{base}/tools/mcp") as client:
            assert (await client.do())["count"] == 1
            async with client.doing({"log": "x"}) as incoming:
                assert (await incoming.message())["params"]["data"] == "x"
                await incoming.answer()
            async with client.listen() as stream:
                assert stream.status == 200
            assert (await client.http.get(f"{base}/tools/readyz")).json()["sessions"] == 1
            missing = await client.http.get(f"{base}/tools/x")
            assert missing.status_code == 404
            assert "the endpoint is /tools/mcp" in missing.text
            assert "hello" in (await client.http.get(f"{base}/hello")).text
    assert processes_of(tmp_path) == []
    assert list((tmp_path / "s" / "run").iterdir()) == []


@pytest.mark.parametrize("outer", [Starlette, FastAPI])
async def test_mounted_without_its_lifespan_it_says_what_is_missing(
    outer: type[Starlette], app: ProxyApp
) -> None:
    """Backends live as long as the application does, so it must be told when that is."""
    whole = outer()
    whole.mount("/tools", app)
    for path in ("mcp", "readyz"):
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(whole)) as client:
            with pytest.raises(RuntimeError, match=r"pass lifespan=app\.lifespan"):
                await client.post(f"http://localhost/tools/{path}")


async def test_on_its_own_it_runs_its_lifespan_itself(app: ProxyApp) -> None:
    """ASGI specification, lifespan protocol."""
    async with served(app, lifespan=True) as base, connect(f"{base}/mcp") as client:
        assert (await client.do())["count"] == 1


async def test_a_lifespan_that_cannot_start_tells_why(tmp_path: Path) -> None:
    """ASGI specification: `lifespan.startup.failed`."""
    (tmp_path / "file").touch()
    app = http_app(SCRIPTED, state_dir=str(tmp_path / "file"))
    sent: list[object] = []

    async def receive() -> dict[str, str]:
        return {"type": "lifespan.startup"}

    async def send(message: object) -> None:
        sent.append(message)

    with pytest.raises(ConfigError):
        await app({"type": "lifespan"}, receive, send)
    (message,) = sent
    assert "lifespan.startup.failed" in str(message)
    assert "--state-dir" in str(message)


async def test_a_lifespan_is_entered_once_at_a_time(app: ProxyApp) -> None:
    """`ProxyApp.lifespan`: two would share what is one's own; one after the other is fine."""
    for _ in range(2):
        async with app.lifespan(), served(app) as base, connect(f"{base}/mcp") as client:
            with pytest.raises(RuntimeError, match="runs already"):
                async with app.lifespan():
                    pass
            assert (await client.do())["count"] == 1


@pytest.mark.parametrize("rung", ["process-group", "guardian"])
async def test_what_is_wrong_with_the_state_directory_is_raised_as_it_is(
    tmp_path: Path, rung: Literal["process-group", "guardian"]
) -> None:
    """`ProxyApp.lifespan`: ConfigError, in no group; whoever embeds it catches that."""
    (tmp_path / "s").mkdir(mode=0o700)
    (tmp_path / "s" / "key").write_text("torn")
    app = http_app(SCRIPTED, state_dir=str(tmp_path / "s"), containment=rung)
    with pytest.raises(ConfigError, match="not a key"):
        async with app.lifespan():
            pass
    assert list((tmp_path / "s" / "run").iterdir()) == []


REFUSED = """
import sys
from sessionproxy.config import ConfigError, settings_from
from sessionproxy.serve import serve

def refuse(app, url):
    raise ConfigError("--warm: too many")

try:
    serve(settings_from({"port": 0, "state_dir": sys.argv[1]}, named="{}"), (), on_ready=refuse)
except ConfigError as error:
    print(error)
"""


def test_what_turns_out_to_be_wrong_while_it_starts_is_raised_as_it_is(tmp_path: Path) -> None:
    """DESIGN 11: `serve` raises one error, however many groups of tasks it has come through."""
    line = [PYTHON, "-c", REFUSED, str(tmp_path / "s")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "--warm: too many\n", done.stderr


async def test_observers_see_every_message_that_is_passed_on(tmp_path: Path) -> None:
    """`Hook`: both ways, answers with the method of their request."""
    seen: list[Forwarded] = []
    app = http_app(SCRIPTED, observers=[seen.append], state_dir=str(tmp_path / "s"))
    async with app.lifespan(), served(app) as base, connect(f"{base}/mcp") as client:
        async with client.doing({"ask": {"method": "roots/list"}}) as incoming:
            ask = await incoming.message()
            await client.respond(ask["id"], result={"roots": []})
            await incoming.answer()
        await client.request("x/y", {"_meta": {"steps": [{"replies": {"error": {"code": 1}}}]}})
    assert [(m.to_backend, m.kind, m.method) for m in seen] == [
        (True, "request", "initialize"),
        (False, "result", "initialize"),
        (True, "notification", "notifications/initialized"),
        (True, "request", "tools/call"),
        (False, "request", "roots/list"),
        (True, "result", "roots/list"),
        (False, "result", "tools/call"),
        (True, "request", "x/y"),
        (False, "error", "x/y"),
    ]


def test_wrong_settings_are_named_as_they_were_given() -> None:
    """DESIGN 11: to a caller in Python, by the name of the argument."""
    with pytest.raises(ConfigError, match=r"^max-sessions: |^max_sessions: "):
        http_app(SCRIPTED, max_sessions=0)
    with pytest.raises(ConfigError, match="max_session: no such setting"):
        http_app(SCRIPTED, max_session=1)  # pyright: ignore[reportCallIssue]
    with pytest.raises(ConfigError, match="no such command"):
        http_app(["no-such-command"])


# -- a process -------------------------------------------------------------------------------------


@asynccontextmanager
async def busy(
    *options: str, script: dict[str, object] | None = None
) -> AsyncGenerator[tuple[Proxy, Client]]:
    """A proxy as a process, with one session."""
    async with proxy(scripted(**(script or {})), *options) as process:
        async with connect(process.url) as client:
            yield process, client


async def readiness(process: Proxy, client: Client) -> int:
    return (await client.http.get(f"{process.base}/readyz")).status_code


async def draining(process: Proxy, client: Client) -> None:
    with anyio.fail_after(PATIENCE):
        while await readiness(process, client) != 503:  # noqa: ASYNC110 - another process
            await anyio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_what_is_in_flight_finish_and_takes_nothing_new(
    number: signal.Signals,
) -> None:
    """DESIGN 7, FAULTS F23."""
    async with busy() as (process, client), client.listen() as stream:
        call = client.doing({"log": ""}, {"ask": {"method": "roots/list"}}, echo="finished")
        async with call as incoming:
            ask = await incoming.until("roots/list")
            assert await readiness(process, client) == 200
            process.signal(number)
            await draining(process, client)
            refused = await Client(client.http, process.url).initialize()
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            await client.respond(ask["id"], result={"roots": []})
            answer = await incoming.answer()
            assert answer["result"]["structuredContent"]["echo"] == "finished"
        assert await stream.rest() == []  # ended by a final chunk, not cut
        assert await process.wait(PATIENCE) == 0
    assert processes_of(process.state_dir) == []


async def test_after_the_drain_limit_what_is_in_flight_is_ended() -> None:
    """DESIGN 7: `drain_timeout` seconds."""
    async with busy("--drain-timeout", "0.2") as (process, client):
        async with client.doing({"log": ""}, {"wait": "never"}) as incoming:
            await incoming.message()
            process.signal(signal.SIGTERM)
            assert "ended" in (await incoming.answer())["error"]["message"]
        assert await process.wait(PATIENCE) == 0
    assert processes_of(process.state_dir) == []


async def test_a_second_signal_ends_at_once() -> None:
    """DESIGN 7, FAULTS F23: also a backend that heeds neither its stdin nor SIGTERM."""
    script: dict[str, object] = {"eof": [{"wait": "never"}], "ignores": ["SIGTERM"]}
    options = ("--drain-timeout", "1000", "--stop-grace", "1000", "--containment", "guardian")
    async with busy(*options, script=script) as (
        process,
        client,
    ):
        found = await client.do({"spawn": ["session"]})
        async with client.doing({"log": ""}, {"wait": "never"}) as incoming:
            await incoming.message()
            process.signal(signal.SIGTERM)
            await draining(process, client)
            process.signal(signal.SIGTERM)
            assert "error" in await incoming.answer()
        assert await process.wait(PATIENCE) == 0
    assert not any(map(lives, (found["pid"], *found["children"])))
    assert list(process.state_dir.glob("run/*")) == []


async def test_what_a_killed_proxy_left_is_swept_at_the_next_start(tmp_path: Path) -> None:
    """DESIGN 5.6, FAULTS F24: processes, detached ones too, and private directories."""
    script = {"eof": [{"wait": "never"}], "ignores": ["SIGTERM", "SIGHUP"]}
    state = tmp_path / "s"
    options = ("--state-dir", str(state), "--containment", "process-group")
    first = start(scripted(**script), *options)
    with first:
        assert first.stdout is not None
        url = next(line for line in first.stdout if line.startswith("endpoint: ")).split()[1]
        async with connect(url) as client:
            found = await client.do({"spawn": []}, {"spawn": ["session"]})
        first.kill()
    pids = (found["pid"], *found["children"])
    assert any(map(lives, pids))
    assert len(list(state.glob("run/*/1/tmp"))) == 1
    async with proxy(SCRIPTED, state_dir=state) as second:
        await gone(*pids)
        assert list(state.glob("run/*/1")) == []
        await until(lambda: any("swept" in line for line in second.log))


async def test_two_proxies_share_a_state_directory(tmp_path: Path) -> None:
    """DESIGN 10: the one that starts leaves alone what the other runs."""
    state = tmp_path / "s"
    async with proxy(SCRIPTED, state_dir=state) as one, connect(one.url) as first:
        found = await first.do()
        async with proxy(SCRIPTED, state_dir=state) as two, connect(two.url) as second:
            await second.do()
            assert (await first.do())["pid"] == found["pid"]
            second.id = first.id  # the same key, but a session of another process
            answer = await second.post({"jsonrpc": "2.0", "method": "x"})
            assert answer.status_code == 404


async def test_an_ipv6_address_is_served() -> None:
    """DESIGN 11: the URL that is shown can be used."""
    async with proxy(SCRIPTED, "--host", "::1") as process:
        assert process.url.startswith("http://[::1]:")
        async with connect(process.url) as client:
            assert (await client.do())["count"] == 1


async def test_an_old_id_is_worth_nothing_after_a_restart(tmp_path: Path) -> None:
    """FAULTS F25: 404, since sleepers are not kept on disk."""
    async with proxy(SCRIPTED, state_dir=tmp_path / "s") as one, connect(one.url) as client:
        old = client.id
    async with proxy(SCRIPTED, state_dir=tmp_path / "s") as two, http() as pool:
        client = Client(pool, two.url)
        client.id = old
        assert (await client.post(request("tools/call", calling()))).status_code == 404


async def test_what_detached_itself_becomes_a_child_of_the_proxy_and_is_reaped() -> None:
    """DESIGN 10, rung a: subreaper under our own command line, so nothing is lost to init."""
    async with busy("--containment", "process-group") as (process, client):
        (daemon,) = (await client.do({"spawn": ["daemon"]}))["children"]
        await until(lambda: psutil.Process(daemon).ppid() == process.process.pid)
        await client.delete()
        await until(lambda: not psutil.pid_exists(daemon))
