"""DESIGN 5.7, 10: only the operator's words reach a command line, and only chosen variables."""

from pathlib import Path

import pytest

from sessionproxy.backends import Template
from sessionproxy.backends.template import INHERITED
from sessionproxy.config import ConfigError

SH = "/bin/sh"
THERE = Path("/private/7")


def test_a_backend_inherits_what_it_needs_to_run_and_nothing_else() -> None:
    """DESIGN 10: PATH, HOME, LANG, USER and the proxy variables."""
    environ = {name: f"its {name}" for name in INHERITED}
    environ |= {"AWS_SECRET": "x", "SESSIONPROXY_PORT": "1", "PYTHONPATH": "x", "PATH": "/bin"}
    env = Template([SH], environ=environ).expand(THERE).env
    assert env == {name: environ[name] for name in INHERITED} | {"TMPDIR": "/private/7/tmp"}


def test_variables_can_be_passed_on_and_set() -> None:
    """DESIGN 10: `--pass-env` and `--env`; the latter wins."""
    template = Template(
        [SH], env=["A=1=2", "B="], pass_env=["A", "TOKEN"], environ={"A": "x", "TOKEN": "t"}
    )
    env = template.expand(THERE).env
    assert {name: env[name] for name in ("A", "B", "TOKEN")} == {"A": "1=2", "B": "", "TOKEN": "t"}


def test_the_session_directory_can_stand_anywhere() -> None:
    """DESIGN 10: Playwright's recipe is `--cwd {session.dir}`."""
    template = Template(
        [SH, "--out={session.dir}/a", "{session.dir}{session.dir}"],
        cwd="{session.dir}/w",
        env=["D={session.dir}"],
        environ={},
    )
    found = template.expand(THERE)
    assert found.argv == (SH, "--out=/private/7/a", "/private/7/private/7")
    assert found.cwd == "/private/7/w"
    assert found.env["D"] == "/private/7"


def test_tmpdir_is_private_whatever_is_set() -> None:
    """DESIGN 10: processes are known by it."""
    env = Template([SH], env=["TMPDIR=/tmp"], environ={"TMPDIR": "/tmp"}).expand(THERE).env
    assert env["TMPDIR"] == "/private/7/tmp"


@pytest.mark.parametrize("text", ["{}", "{x}", "{session}", "${HOME}", '{"json": {"a": 1}}', "{{"])
def test_other_braces_are_left_alone(text: str) -> None:
    """Arguments may be JSON."""
    assert Template([SH, text], environ={}).expand(THERE).argv == (SH, text)


@pytest.mark.parametrize("where", ["argument", "cwd", "env"])
@pytest.mark.parametrize("name", ["session.id", "owner.id", "session.dirs", "owner.claims"])
def test_an_unknown_placeholder_is_a_wrong_setting(name: str, where: str) -> None:
    """DESIGN 11: it names the placeholder and what there is."""
    text = f"x{{{name}}}"
    with pytest.raises(ConfigError, match=rf"\{{{name}\}}: unknown placeholder"):
        Template(
            [SH, text if where == "argument" else ""],
            cwd=text if where == "cwd" else None,
            env=[f"A={text}"] if where == "env" else [],
        )


@pytest.mark.parametrize(
    "command", ["no-such-command-here", "/no/such", "./no/such", "/etc/passwd", ""]
)
def test_a_command_that_is_not_there_is_a_wrong_setting(command: str) -> None:
    """DESIGN 11: one line, before anything is started."""
    with pytest.raises(ConfigError, match="no such command, or not executable"):
        Template([command])


def test_a_command_is_looked_for_where_the_backend_will_look(tmp_path: Path) -> None:
    """DESIGN 11: with its PATH, and relative to its working directory."""
    program = tmp_path / "bin" / "mine"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    Template(["mine"], env=[f"PATH={program.parent}"])
    Template(["bin/mine"], cwd=str(tmp_path))
    Template([str(program)])
    with pytest.raises(ConfigError):
        Template(["mine"], environ={"PATH": "/nowhere"})
    with pytest.raises(ConfigError):
        Template(["bin/mine"], cwd=str(tmp_path / "bin"))
    Template(["./made-later"], cwd="{session.dir}")
    Template(["{session.dir}/made-later"])


@pytest.mark.parametrize("cwd", ["/nowhere", "nowhere", __file__, ""])
def test_a_working_directory_that_is_not_there_is_a_wrong_setting(cwd: str) -> None:
    """DESIGN 11, FAULTS F01: one line, before anything is started."""
    with pytest.raises(ConfigError, match=f"--cwd {cwd}: no such directory"):
        Template([SH], cwd=cwd)


def test_a_working_directory_that_only_a_session_has_is_looked_for_at_its_start() -> None:
    """FAULTS F01: nobody can tell before."""
    assert Template([SH], cwd="/nowhere/{session.dir}").expand(THERE).cwd == "/nowhere//private/7"


def test_a_backend_starts_where_the_proxy_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 10: who starts it may stand elsewhere, and the proxy itself later on."""
    program = tmp_path / "sub" / "mine"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    here, below = Template(["sub/mine"]), Template(["./mine"], cwd="sub")
    made_later = Template([SH], cwd="sub/{session.dir}")
    monkeypatch.chdir("/")
    assert here.expand(THERE).cwd == str(tmp_path)
    assert below.expand(THERE).cwd == str(tmp_path / "sub")
    assert below.expand(THERE).argv == ("./mine",)
    assert made_later.expand(THERE).cwd == f"{tmp_path}/sub//private/7"


def test_a_directory_that_was_removed_beneath_the_proxy_is_a_wrong_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 11: another one can be named."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="--cwd: the proxy's own directory: No such file"):
        Template([SH])
    assert Template([SH], cwd="/").expand(THERE).cwd == "/"


def test_no_command_is_a_wrong_setting() -> None:
    """DESIGN 11."""
    with pytest.raises(ConfigError, match="COMMAND"):
        Template([])


@pytest.mark.parametrize("assignment", ["A", "=x", "", "SESSIONPROXY_PORT=1"])
def test_a_malformed_assignment_is_a_wrong_setting(assignment: str) -> None:
    """DESIGN 11."""
    with pytest.raises(ConfigError, match="--env"):
        Template([SH], env=[assignment])


@pytest.mark.parametrize("name", ["NOT_THERE", "SESSIONPROXY_PORT", ""])
def test_a_variable_that_cannot_be_passed_on_is_a_wrong_setting(name: str) -> None:
    """DESIGN 10: never `SESSIONPROXY_*`."""
    with pytest.raises(ConfigError, match="--pass-env"):
        Template([SH], pass_env=[name], environ={"SESSIONPROXY_PORT": "1"})
