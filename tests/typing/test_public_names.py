"""What strict type checkers read is all that is public (issue 5, shown by 5)."""

import ast
import subprocess
import sys
from pathlib import Path

import sessionproxy

USER = Path(__file__).with_name("user_of_everything.py")


def test_every_public_name_is_used_by_the_user_of_everything() -> None:
    """Issue 5: a user's file that uses all public names passes pyright strict; `scripts/test` has
    pyright read it."""
    tree = ast.parse(USER.read_text(encoding="utf-8"))
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "sessionproxy"
        for alias in node.names
    }
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert set(sessionproxy.__all__) == imported & used


def test_every_public_name_is_there() -> None:
    """Issue 5: also those that are imported once they are used."""
    for name in sessionproxy.__all__:
        assert getattr(sessionproxy, name) is not None
        assert name in dir(sessionproxy)


def test_names_are_imported_once_they_are_used() -> None:
    """DESIGN 4: the guardian and the demo need the package alone, and an application no SDK."""
    code = """
import sys
def loaded():
    return [m for m in ("sessionproxy.app", "sessionproxy.client", "mcp") if m in sys.modules]
import sessionproxy
print(loaded(), sessionproxy.__version__ != "", "create_proxy" in dir(sessionproxy))
from sessionproxy import http_app
print(loaded())
print(sessionproxy.create_proxy is sessionproxy.create_proxy, loaded())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [
        "[] True True",
        "['sessionproxy.app']",
        "True ['sessionproxy.app', 'sessionproxy.client', 'mcp']",
    ]


def test_a_name_that_is_not_public_is_not_there() -> None:
    """As of any module."""
    assert not hasattr(sessionproxy, "no_such_name")
