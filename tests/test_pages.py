"""Every block of code of README and tutorial does here what the page says it does."""

import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Final

import pytest

from sessionproxy.config import Settings, flag_of
from tests.rig.browsers import pages
from tests.rig.pages import READ, SHELL, Block, Reader, blocks, check, commands, complaint, reader
from tests.rig.proxy import ROOT, lasting

README: Final = ROOT / "README.md"
TUTORIAL: Final = ROOT / "docs/tutorial.md"
IN_PYTHON: Final = ROOT / "docs/tutorial-python.md"
TENANTS: Final = ROOT / "docs/how-to/tenants.md"

NOT_RUN: Final = {
    "scripts/run": "it would make an environment in the sources, and the demo is served below",
    "scripts/test": "it is what runs this",
    "scripts/docs": "test_docs.py builds the site",
    "scripts/bench": "minutes, and figures that mean nothing beside other tests; test_bench.py",
    "scripts/compare_fastmcp": "it fetches FastMCP, and serves on ports of its own",
    "scripts/chaos": "minutes; test_chaos.py runs it in its short form",
    "scripts/soak": "minutes; test_soak.py runs it in its short form",
    "scripts/endings": "minutes; tests/clients/test_endings.py runs it in its short form",
    "claude mcp add": "Claude Code is not to be had without an account",
}
"""How commands begin that are not run, and why. Their syntax is checked, and that a script of ours
is there."""

INSTALLED: Final = {
    "python3 -m venv": "the README's test does it; here the project is installed for the tests",
    "pip install": "the same",
}
"""What of a tutorial is not run, and why."""

PACKAGES: Final = {
    "@playwright/mcp": "playwright-mcp",
    "@modelcontextprotocol/inspector": "mcp-inspector",
}
"""What the pages have npx fetch, and which command of `tests/node` that is."""

NEVER_STARTED: Final = ("my-server", "my-search-server")
"""Commands that stand in pages for those of the reader."""

OFFLINE: Final = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}
"""With these `pip install .` builds and installs the project and nothing else; what it needs is
found in the environment of the tests. (Of the third, pip means the opposite of what it says.)"""


@pytest.fixture
def home() -> Generator[Path]:
    """A directory of its own, near the root: the guardian's socket is in it."""
    directory = Path(tempfile.mkdtemp(prefix="sp-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def environment(home: Path) -> dict[str, str]:
    """Return the variables of a user with this home, who has nothing to fetch."""
    programs = home / "programs"
    programs.mkdir()
    for name in NEVER_STARTED:
        (programs / name).symlink_to(shutil.which("false") or "/bin/false")
    node = ROOT / "tests/node/node_modules/.bin"
    cases = "".join(f'{name}) exec {node}/{own} "$@" ;;\n' for name, own in PACKAGES.items())
    npx = programs / "npx"
    npx.write_text(f"#!/bin/sh\nshift\nname=$1\nshift\ncase $name in\n{cases}esac\nexit 127\n")
    npx.chmod(0o755)
    for name in ("state", "tmp"):
        (home / name).mkdir()
    path = (str(programs), str(Path(sys.executable).parent), os.environ["PATH"])
    return {
        "PATH": ":".join(path),
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "XDG_STATE_HOME": str(home / "state"),
        "TOKEN": "secret",
        **OFFLINE,
    }


def clone(to: Path) -> Path:
    """Copy what a clone of the repository has that an installation reads; return where it is."""
    to.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "node_modules", ".*")
    for name in ("sessionproxy", "examples", "docs"):
        shutil.copytree(ROOT / name, to / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, to / name)
    return to


def read(page: Path, by: Reader) -> None:
    """Do every block of the page. What goes wrong names the line of the page."""
    for block in blocks(page.read_text()):
        try:
            by.do(block)
        except Exception as error:
            where = f"{page.relative_to(ROOT)}:{block.line}"
            raise AssertionError(f"{where}: {block.text}\n{error}") from error


@pytest.mark.browser
@pytest.mark.timeout(240)
def test_every_block_of_the_readme_does_what_it_says(home: Path) -> None:
    """README.md. A page on loopback stands in for the one on the internet, a demo behind a proxy
    of its own for the server elsewhere, and Debian's Chromium for whatever is at that path."""
    chromium = shutil.which("chromium")
    assert chromium is not None
    with pages() as web, lasting(()) as elsewhere:
        stand_ins = {
            "https://example.com": f"{web}/example",
            "https://tools.example.com/mcp": elsewhere.url,
            "/usr/bin/chromium": chromium,
            "/path/to/venv/bin/": f"{home}/clone/venv/bin/",
        }
        env = environment(home)
        with reader(clone(home / "clone"), env=env, stand_ins=stand_ins, not_run=NOT_RUN) as by:
            read(README, by)
    assert by.left_out == NOT_RUN.keys()
    assert "- Page Title: Page of example\\n" in by.history, "what the Inspector was told"
    assert '- heading "Page of example"' in by.history, "what the Python client was told"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", [TUTORIAL, IN_PYTHON], ids=lambda page: page.stem)
def test_every_block_of_the_tutorial_does_what_it_says(page: Path, home: Path) -> None:
    """docs/tutorial.md and docs/tutorial-python.md."""
    (home / "work").mkdir()
    with reader(home / "work", env=environment(home), stand_ins={}, not_run=INSTALLED) as by:
        read(page, by)
    assert by.left_out == INSTALLED.keys()


@pytest.mark.timeout(240)
def test_each_tenant_has_the_server_that_its_page_says(home: Path) -> None:
    """docs/how-to/tenants.md: two have keys of their own, and a third is refused."""
    (home / "work").mkdir()
    with reader(home / "work", env=environment(home), stand_ins={}, not_run={}) as by:
        read(TENANTS, by)


@pytest.mark.timeout(240)
def test_the_python_of_the_how_tos_makes_what_it_shows(home: Path) -> None:
    """docs/how-to: each file is imported, which makes its proxy and starts nothing; each
    application is served."""
    (home / "work").mkdir()
    modules: list[str] = []
    with reader(home / "work", env=environment(home), stand_ins={}, not_run={}) as by:
        for page in sorted((ROOT / "docs/how-to").glob("*.md")):
            for block in blocks(page.read_text()):
                if block.direction.startswith(("save as", "serve app")):
                    by.do(block)
                if block.direction.endswith(".py"):
                    modules.append(block.direction.removeprefix("save as ").removesuffix(".py"))
        imports = "".join(f"import {module}\n" for module in modules)
        by.do(Block("python", imports, "", 1))
    assert len(modules) == len(set(modules)) > 5


# -- all pages -------------------------------------------------------------------------------------

SHOWN: Final = ("text", "nginx", "haproxy", "yaml")
"""Languages that nothing here reads."""

PAGES: Final = sorted([README, *(ROOT / "docs").rglob("*.md")])
EXAMPLES: Final = [(page, block) for page in PAGES for block in blocks(page.read_text())]


def shell_commands() -> Generator[tuple[str, str]]:
    """Yield every command of every page, and where it stands."""
    for page, block in EXAMPLES:
        if block.language in SHELL and not block.text.startswith("#"):
            for command in commands(block.text):
                yield f"{page.relative_to(ROOT)}:{block.line}", command


def test_every_command_of_every_page_is_one() -> None:
    """Its syntax; that a script of ours is there; and that our options are options."""
    flags = {flag_of(name) for name in Settings.__struct_fields__}
    flags |= {"--help", "--version", "--no-expose-stderr", "--config"}
    for where, command in shell_commands():
        assert not complaint(command), where
        words = shlex.split(command, comments=True)
        if words and words[0].startswith("scripts/"):
            assert os.access(ROOT / words[0], os.X_OK), f"{where}: {words[0]}"
        for ours in re.findall(r"\bsessionproxy (?:run|stdio|doctor)\b(.*?)(?: -- |$)", command):
            for flag in re.findall(r"(?<!\S)--[a-z-]+", ours):
                assert flag in flags, f"{where}: {flag}"


def test_every_block_of_every_page_can_be_read() -> None:
    """Pages that nobody follows above have no typing errors either."""
    for page, block in EXAMPLES:
        where = f"{page.relative_to(ROOT)}:{block.line}"
        assert block.language in {*SHELL, *READ, *SHOWN}, where
        if block.language in READ:
            try:
                check(block.language, block.text)
            except (ValueError, SyntaxError) as error:
                raise AssertionError(f"{where}: {error}") from error
