"""The table of FAULTS is whole: no row without a test or a reason, no test that is not there."""

import ast
from pathlib import Path

import pytest

from .rows import LATER, SECURITY, TESTS

ROOT = Path(__file__).parents[2]
ROWS = [f"F{number:02}" for number in range(1, 51)]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_its_tests_or_is_said_to_come_later(row: str) -> None:
    """FAULTS: each row is a test."""
    assert TESTS.get(row) or LATER.get(row)


def test_the_table_has_no_other_rows() -> None:
    assert TESTS.keys() | LATER.keys() <= set(ROWS)


@pytest.mark.parametrize("row", TESTS)
def test_the_tests_of_a_row_exist_and_name_it(row: str) -> None:
    """A test outside of `tests/faults` may stand for a row without naming it."""
    assert TESTS[row]
    for node in TESTS[row]:
        path, _, name = node.partition("::")
        found = _tests_in(ROOT / path)
        assert name in found, f"{row}: {node} does not exist"
        if path.startswith("tests/faults/"):
            assert row in found[name], f"{row}: {node} does not name it in its docstring"


@pytest.mark.parametrize("topic", SECURITY)
def test_the_tests_of_a_rule_exist(topic: str) -> None:
    """FAULTS, Security."""
    for node in SECURITY[topic]:
        path, _, name = node.partition("::")
        assert name in _tests_in(ROOT / path), f"{topic}: {node} does not exist"


def _tests_in(path: Path) -> dict[str, str]:
    """Return the test functions of a module with their docstrings."""
    if not path.exists():
        return {}
    nodes = ast.parse(path.read_text()).body
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {node.name: ast.get_docstring(node) or "" for node in functions}
