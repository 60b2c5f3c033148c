"""The command line, as a process: DESIGN 11, last row, and what it shows and writes."""

import json
import os
import re
import socket
import subprocess
from pathlib import Path

import msgspec
import pytest

from sessionproxy import __version__
from sessionproxy.cli import NOT_STDIO, STDIO_DEFAULTS
from sessionproxy.config import Settings, flag_of
from tests.rig.embedded import PYTHON, SCRIPTED, scripted, until
from tests.rig.http import Client, calling, connect, http
from tests.rig.modern import Modern
from tests.rig.piped import process
from tests.rig.proxy import DEMO, ROOT, proxy
from tests.rig.several import listing


def cli(*arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line until it ends, which it must do by itself."""
    return subprocess.run(
        [PYTHON, "-m", "sessionproxy", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def assert_one_line(done: "subprocess.CompletedProcess[str]", *says: str) -> None:
    """It ended with 2 and one line on stderr that says so; and nothing was started."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("sessionproxy: ")
    for text in says:
        assert text in line


# -- wrong use -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--idle", "soon"], ["--idle", "number"]),
        (["run", "--idle", "-1"], ["--idle", "at least 0"]),
        (["run", "--port", "70000"], ["--port", "at most 65535"]),
        (["run", "--path", "mcp"], ["--path", "such as /mcp"]),
        (["run", "--on-loss", "shrug"], ["--on-loss", "tell", "annotate", "not-found"]),
        (["run", "--log-level", "loud"], ["--log-level", "'debug', 'info'"]),
        (["run", "--no-such"], ["--no-such"]),
        (["run", "--idle"], ["--idle"]),
        (["run", "--allow-origin", "app.example"], ["--allow-origin", "SCHEME://HOST"]),
        (["run", "--allow-host", "http://x"], ["--allow-host", "NAME:PORT"]),
        (["run", "--env", "A"], ["--env", "NAME=VALUE"]),
        (["run", "--pass-env", "NO_SUCH"], ["--pass-env", "NO_SUCH"]),
        (["run", "--", "no-such-command", "x"], ["COMMAND", "no-such-command"]),
        (["run", "--cwd", "/no/such", "--", "cat"], ["--cwd", "/no/such"]),
        (["run", "--", "cat", "{session.id}"], ["{session.id}", "{session.dir}"]),
        (["run", "--host", "0.0.0.0"], ["--host", "0.0.0.0", "--insecure"]),
        (["run", "--host", "::"], ["--host", "--insecure"]),
        (["run", "--token-file", "/no/such"], ["--token-file /no/such", "No such file"]),
        (["run", "--insecure", "--token-file", "/dev/null"], ["--insecure", "--token-file"]),
        (["run", "--tls-cert", "/no/such"], ["--tls-key", "--tls-cert needs it"]),
        (["run", "--tls-key", "/no/such"], ["--tls-cert", "--tls-key needs it"]),
        (["run", "--tls-cert", "/no", "--tls-key", "/no"], ["--tls-cert /no", "No such file"]),
        (
            ["run", "--host", "0.0.0.0", "--insecure", "--key-cookie", "on"],
            ["--key-cookie", "HTTPS", "--tls-cert", "loopback"],
        ),
        (["run", "--handles", "maybe"], ["--handles", "off", "optional", "required"]),
        (["run", "--handles", "optional", "--affinity", "principal"], ["--handles", "principal"]),
        (["run", "--host", "no.such.host.invalid", "--insecure"], ["--host", "no.such.host"]),
        (["run", "--state-dir", "/dev/null", "--port", "0"], ["--state-dir", "/dev/null"]),
        (["no-such"], ["no-such"]),
        (["doctor", "--idle", "soon"], ["--idle"]),
        (["run", "--sse", "perhaps"], ["--sse", "on", "off"]),
        (["stdio", "--idle", "soon"], ["--idle", "number"]),
        (["stdio", "--port", "8080"], ["--port"]),
        (["stdio", "--", "no-such-command", "x"], ["COMMAND", "no-such-command"]),
        (["stdio", "--state-dir", "/dev/null"], ["--state-dir", "/dev/null"]),
    ],
    ids=lambda value: " ".join(value),
)  # fmt: skip
def test_wrong_use_ends_with_one_line_that_names_it_and_what_is_allowed(
    arguments: list[str], says: list[str]
) -> None:
    """DESIGN 11: exit 2; nothing started."""
    assert_one_line(cli(*arguments), *says)


def test_a_port_that_is_taken_is_named() -> None:
    """DESIGN 11."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert_one_line(cli("run", "--port", port), "--port", port, "in use")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SESSIONPROXY_IDLE", "soon", "number"),
        ("SESSIONPROXY_IDLE", "-1", "at least 0"),
        ("SESSIONPROXY_HOST", "0.0.0.0", "--insecure"),
        ("SESSIONPROXY_LOG_LEVEL", "loud", "'debug', 'info'"),
        ("SESSIONPROXY_ENV", "A", "NAME=VALUE"),
    ],
)
def test_what_was_set_by_a_variable_is_named_by_it(name: str, value: str, says: str) -> None:
    """DESIGN 11: one line naming the key, as it was given."""
    done = cli("run", "--port", "0", **{name: value})
    assert_one_line(done, name, says)
    assert f"--{name.removeprefix('SESSIONPROXY_').lower().replace('_', '-')}" not in done.stderr


def test_a_flag_is_named_by_itself_though_its_variable_is_set_too() -> None:
    """The flag wins, so it is the flag that is wrong."""
    done = cli("run", "--idle", "-1", SESSIONPROXY_IDLE="5")
    assert_one_line(done, "--idle", "at least 0")
    assert "SESSIONPROXY_IDLE" not in done.stderr


def test_a_state_directory_others_can_read_is_refused(tmp_path: Path) -> None:
    """DESIGN 10: 0700."""
    tmp_path.chmod(0o755)
    done = cli("run", "--port", "0", "--state-dir", str(tmp_path))
    assert_one_line(done, "--state-dir", "0700")


@pytest.mark.parametrize("rung", ["process-group", "guardian"])
def test_a_torn_key_is_named(tmp_path: Path, rung: str) -> None:
    """DESIGN 11: with what to do about it, on any rung."""
    (tmp_path / "s").mkdir(mode=0o700)
    (tmp_path / "s" / "key").write_text("torn")
    options = ("--port", "0", "--state-dir", str(tmp_path / "s"), "--containment", rung)
    assert_one_line(cli("run", *options), f"{tmp_path}/s/key", "remove it")


# -- what it shows ---------------------------------------------------------------------------------


def test_help_lists_every_setting() -> None:
    """Its options are the fields of `Settings`, one for one."""
    text = cli("run", "--help").stdout
    for field in msgspec.structs.fields(Settings):
        assert flag_of(field.name) in text
    assert "Examples" in text


def test_a_process_with_one_client_has_the_settings_that_mean_something_to_it() -> None:
    """Our choice: what is about HTTP, or tells clients apart, is no option of `stdio`."""
    assert NOT_STDIO <= {field.name for field in msgspec.structs.fields(Settings)}
    text = cli("stdio", "--help").stdout
    for field in msgspec.structs.fields(Settings):
        assert (f" {flag_of(field.name)} " in text) is (field.name not in NOT_STDIO)
    assert "mcpServers" in text


def test_alone_it_shows_what_there_is() -> None:
    """A first look costs nothing."""
    done = cli()
    assert done.returncode == 0
    assert "run" in done.stdout
    assert "stdio" in done.stdout
    assert "doctor" in done.stdout


def test_it_tells_its_version() -> None:
    """`--version`."""
    assert cli("--version").stdout == f"sessionproxy {__version__}\n"


async def test_the_banner_tells_where_and_how_to_connect() -> None:
    """Plain lines where stdout is no terminal."""
    async with proxy(SCRIPTED, "--idle", "5", "--max-sessions", "3") as process:
        assert process.banner[0] == f"sessionproxy {__version__}"
        shown = dict(line.split(": ", 1) for line in await process.more_banner())
    assert shown["backend"].endswith("scripted.py")
    assert process.url in shown["Claude Code"]
    assert json.loads(shown["mcp.json"])["mcpServers"]["sessionproxy"]["url"] == process.url
    assert shown["sessions"] == "at most 3 backends; a backend idle for 5 s stops"
    assert shown["containment"]
    assert "INSECURE" not in shown


async def test_beyond_loopback_it_serves_addresses_and_says_that_it_is_insecure() -> None:
    """DESIGN 6: only if told `--insecure`; names only where allowed."""
    options = ("--host", "0.0.0.0", "--insecure", "--allow-host", "api.example")
    async with proxy(SCRIPTED, *options) as process:
        url = f"http://127.0.0.1:{process.port}/mcp"
        async with connect(url) as client:
            assert (await client.do())["count"] == 1
            for host, status in (("api.example", 202), ("evil.com", 403), ("localhost", 202)):
                answer = await client.also(host=host).notify("x")
                assert answer.status_code == status
        assert "INSECURE" in dict(line.split(": ", 1) for line in await process.more_banner())


async def test_a_variable_sets_an_option_and_an_unknown_one_is_warned_of() -> None:
    """DESIGN 11: a typo in the environment must not pass unseen."""
    env = {"SESSIONPROXY_IDLE": "7", "SESSIONPROXY_IDEL": "8"}
    async with proxy(SCRIPTED, env=env) as process, http() as pool:
        response = await Client(pool, process.url).initialize()
        assert response.headers["sessionproxy-idle-timeout"] == "7"
        await until(lambda: any("SESSIONPROXY_IDEL" in line for line in process.log))


async def test_what_follows_the_command_is_its_own() -> None:
    """`run npx -y ...` works without `--`; the proxy's variables stay its own."""
    arguments = ("{}", "--idle", "5", "-h", "--version")
    env = {"SESSIONPROXY_MAX_AGE": "1000"}
    async with proxy((*SCRIPTED, *arguments), env=env) as process:
        async with connect(process.url) as client:
            about = (await client.do({"tells": "about"}))["about"]
    assert tuple(about["argv"]) == arguments
    assert not any(name.startswith("SESSIONPROXY_") for name in about["env"])


async def test_without_a_command_it_serves_the_demo() -> None:
    """Something to try, without installing anything."""
    async with proxy() as process, connect(process.url) as client:
        assert client.opened["result"]["serverInfo"]["name"] == "sessionproxy-demo"


async def test_a_process_with_one_client_says_nothing_but_its_answers() -> None:
    """No banner: stdout is for messages alone; the log goes to stderr. Idle or not, its backend
    lives as long as its client, unless told otherwise."""
    async with process(SCRIPTED, "--log-json") as client:
        await client.initialize()
        await client.do()
        client.close_stdin()
        assert await client.rest() == []
        assert await client.wait() == 0
    lines = [json.loads(line) for line in client.log.splitlines()]
    assert any("disconnected" in line["message"] for line in lines)
    assert STDIO_DEFAULTS["idle"] == 0


async def test_the_log_tells_of_sessions_without_their_ids() -> None:
    """DESIGN 5.8: ids are in no log line."""
    command = scripted(start=[{"stderr": ["from the backend"]}])
    async with proxy(command, "--log-level", "debug") as process:
        async with connect(process.url) as client:
            await client.post(b"{")
            await client.delete()
            await client.notify("x")
            await until(lambda: any("ended: client_delete" in line for line in process.log))
        log = "\n".join(process.log)
    assert client.id
    assert client.id not in log
    assert re.search(r"\b[0-9a-f]{8} stderr: from the backend", log)


async def test_the_log_can_be_json() -> None:
    """`--log-json`: one object per line."""
    async with proxy(SCRIPTED, "--log-json") as process, connect(process.url) as client:
        await client.delete()
        await until(lambda: any("client_delete" in line for line in process.log))
    lines = [json.loads(line) for line in process.log]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)


# -- doctor ----------------------------------------------------------------------------------------


def test_doctor_tells_what_this_machine_offers() -> None:
    """DESIGN 10: `sessionproxy doctor` shows the rung of containment."""
    done = cli("doctor")
    assert done.returncode == 0, done
    for what in ("python", "containment", "descriptors", "uvloop", "httptools"):
        assert f" {what}: " in done.stdout


def test_doctor_tries_a_backend(tmp_path: Path) -> None:
    """It starts it the way the proxy does, and leaves nothing."""
    done = cli("doctor", "--state-dir", str(tmp_path / "s"), "--", *DEMO)
    assert done.returncode == 0, done
    for what in ("start", "initialize", "tools/list", "stop"):
        assert f"ok   {what}: " in done.stdout
    assert list((tmp_path / "s" / "run").iterdir()) == []


def test_doctor_lists_tools_as_clients_see_them(tmp_path: Path) -> None:
    """PARITY 14: who tries a configuration wants to know what its rules come to."""
    command, *args = listing(tools=["do"])
    server = {"command": command, "args": args}
    one = {**server, "rename_tools": {"do": "act"}}
    path = written(
        tmp_path,
        "servers.json",
        json.dumps({"mcpServers": {"one": one, "two": {**server, "deny_tools": ["*"]}}}),
    )
    done = cli("doctor", "--state-dir", str(tmp_path / "s"), "--config", path)
    assert done.returncode == 0, done
    lists = [line for line in done.stdout.splitlines() if "tools/list: " in line]
    assert lists[0].endswith(" ms: 1: one_act")
    assert lists[1].endswith(" ms: 0 (1 more not shown): ")


def test_doctor_names_a_command_that_is_not_there() -> None:
    """DESIGN 11: exit 2, after what could be said of the machine."""
    done = cli("doctor", "--", "no-such-command")
    assert done.returncode == 2
    assert (
        done.stderr
        == "sessionproxy: COMMAND: no-such-command: no such command, or not executable\n"
    )


NO_TOOLS = {"on": {"tools/list": [{"replies": {"error": {"code": -32601, "message": "none"}}}]}}
ODD_TOOLS = {"on": {"tools/list": [{"replies": {"result": {"tools": 5}}}]}}


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (scripted(start=[{"stderr": ["Cannot find module"]}, {"exit": 3}]), "exit status 3"),
        (scripted(start=[{"stderr": ["Cannot find module"]}, {"exit": 3}]), "Cannot find module"),
        (scripted(initialize=[{"kill": "SIGKILL"}]), "SIGKILL"),
        (scripted(initialize=[{"replies": {"error": {"code": 1, "message": "no!"}}}]), "no!"),
        (scripted(initialize=[{"wait": "never"}]), "no answer to initialize"),
        (scripted(**NO_TOOLS), "none"),
        (scripted(**ODD_TOOLS), "tools/list"),
        (scripted(), "tools/list"),
    ],
)
def test_doctor_tells_what_is_wrong_with_a_backend(
    command: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    """Ends with status 1, and without a traceback."""
    options = ("--state-dir", str(tmp_path / "s"), "--start-timeout", "1", "--stop-grace", "0.1")
    done = cli("doctor", *options, "--", *command)
    assert done.returncode == 1, done
    assert "FAIL" in done.stdout
    assert says in done.stdout
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "s" / "run").iterdir()) == []


async def test_the_ids_that_clients_send_in_meta_count_unless_others_are_named() -> None:
    """DESIGN 6: the allow-list is the default of an option, and the option replaces it."""
    for options, apart in (((), True), (("--key-meta", "x"), False)):
        async with proxy(SCRIPTED, *options) as process, http() as pool:
            client = Modern(pool, process.url)
            found = [
                (await client.call(meta={"threadId": name}))["structuredContent"] for name in "ab"
            ]
            assert (found[0]["nonce"] != found[1]["nonce"]) is apart


# -- several servers -------------------------------------------------------------------------------


def written(tmp_path: Path, name: str, text: str) -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def of_two(**settings: object) -> str:
    """A configuration of two servers, as a file has it."""
    command, *args = SCRIPTED
    server = {"command": command, "args": args}
    return json.dumps({"mcpServers": {"one": server, "two": server}, "sessionproxy": settings})


async def test_a_configuration_names_several_servers_and_settings(tmp_path: Path) -> None:
    """Issue: `sessionproxy run --config servers.json`; what the command line says counts more."""
    path = written(tmp_path, "servers.json", of_two(idle=7, max_sessions=9))
    async with proxy((), "--config", path, "--idle", "8") as process:
        async with connect(process.url) as client, http() as pool:
            assert client.opened["result"]["serverInfo"]["name"] == "sessionproxy"
            for name in ("one", "two"):
                assert (await client.do(name=f"{name}_do"))["count"] == 1
            response = await client.initialize()
            assert response.status_code == 400
            fresh = Client(pool, process.url)
            assert (await fresh.initialize()).headers["sessionproxy-idle-timeout"] == "8"
            own = Client(pool, f"{process.url.removesuffix('/mcp')}/servers/two/mcp")
            await own.initialize()
            assert (await own.do())["count"] == 1
            ready = (await pool.get(f"{process.url.removesuffix('/mcp')}/readyz")).json()
            assert set(ready["servers"]) == {"one", "two"}


async def test_a_configuration_may_be_toml(tmp_path: Path) -> None:
    """Issue: also TOML, with a `[sessionproxy]` part."""
    command, *args = SCRIPTED
    text = (
        f"[sessionproxy]\nidle = 7\n[mcpServers.one]\ncommand = {json.dumps(command)}\n"
        f"args = {json.dumps(args)}\n"
    )
    path = written(tmp_path, "servers.toml", text)
    async with proxy((), "--config", path) as process, connect(process.url) as client:
        assert (await client.do())["count"] == 1


async def test_several_servers_serve_one_client_on_stdio(tmp_path: Path) -> None:
    """PARITY 72: as a desktop client starts it."""
    path = written(tmp_path, "servers.json", of_two())
    async with process((), "--config", path) as client:
        await client.initialize()
        for name in ("one_do", "two_do"):
            answer = await client.request("tools/call", calling(name=name))
            assert answer["result"]["structuredContent"]["count"] == 1
        client.close_stdin()
        assert await client.wait() == 0


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("{", [], ["servers.json"]),
        ("{}", [], ["expected at least one server"]),
        ('{"mcpServers": {"a": {"command": "x", "url": "http://y"}}}', [], ["mcpServers.a"]),
        ('{"a": {"command": "x"}, "sessionproxy": {"idel": 1}}', [], ["sessionproxy.idel"]),
        ('{"a": {"command": "x"}, "sessionproxy": {"idle": -1}}', [], ["idle", "at least 0"]),
        ('{"a": {"command": "x"}}', ["--url", "http://y/mcp"], ["--url"]),
        ('{"a": {"command": "x"}}', ["--", "cat"], ["--config", "COMMAND"]),
    ],
)
def test_a_wrong_configuration_is_one_line(
    tmp_path: Path, text: str, options: list[str], says: list[str]
) -> None:
    """DESIGN 11: naming the key or path; exit 2; nothing started."""
    path = written(tmp_path, "servers.json", text)
    assert_one_line(cli("run", "--config", path, *options), *says)


def test_a_configuration_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    """DESIGN 11."""
    path = str(tmp_path / "none.json")
    assert_one_line(cli("run", "--config", path), path)
