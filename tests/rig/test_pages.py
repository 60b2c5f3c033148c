"""Whoever follows a page notices what is wrong with it."""

from pathlib import Path

import pytest

from tests.rig.pages import Block, blocks, commands, reader

PAGE = """
# Title

    indented --code

<!-- run: save as a.py -->

```python
x = 1
```

- in a list

  ```sh
  one \\
    two
  for i in 1 2; do
    echo $i
  done
  ```
"""


def follow(directory: Path, *said: Block, not_run: dict[str, str] | None = None) -> str:
    """Return all that was printed."""
    with reader(directory, env={}, stand_ins={"WORLD": "here"}, not_run=not_run or {}) as by:
        for block in said:
            by.do(block)
    return by.history


def shell(text: str) -> Block:
    return Block("", text, "", 1)


def test_blocks_are_found_with_their_language_and_direction() -> None:
    """Our own form: a comment says what is done with the block that follows, and with no other."""
    first, second, third = blocks(PAGE)
    assert first == Block("", "indented --code\n", "", 4)
    assert second == Block("python", "x = 1\n", "save as a.py", 8)
    assert (third.language, third.direction) == ("sh", "")


def test_a_command_may_go_on_in_the_next_line() -> None:
    """By a backslash, or because it is not complete."""
    one, other = commands(blocks(PAGE)[2].text)
    assert one == "one \\\n  two"
    assert other.startswith("for") and other.endswith("done")  # noqa: PT018 - one thing


def test_variables_and_the_directory_stay_from_one_block_to_the_next(tmp_path: Path) -> None:
    """As in the reader's shell."""
    said = follow(tmp_path, shell("mkdir a && cd a\nNAME=WORLD\n"), shell("echo $NAME; pwd\n"))
    assert said == f"here\n{tmp_path}/a\n"


def test_a_command_that_fails_is_noticed(tmp_path: Path) -> None:
    """The first one of a block, too."""
    with pytest.raises(AssertionError, match="status 1"):
        follow(tmp_path, shell("false\ntrue\n"))


def test_what_a_page_says_is_printed_has_to_be(tmp_path: Path) -> None:
    """`...` stands for anything."""
    follow(tmp_path, shell("echo one; echo two\n"), Block("text", "o...\ntwo\n", "", 1))
    with pytest.raises(AssertionError, match="expected"):
        follow(tmp_path, shell("echo one; echo two\n"), Block("text", "one\n", "", 1))


def test_what_is_not_run_is_still_read(tmp_path: Path) -> None:
    """For its syntax."""
    assert follow(tmp_path, shell("echo $HOME\n"), not_run={"echo": "x"}) == ""
    with pytest.raises(AssertionError, match="no shell command"):
        follow(tmp_path, shell("rm 'half\n"), not_run={"rm": "x"})


def test_a_server_that_ends_before_it_listens_is_noticed(tmp_path: Path) -> None:
    """With what it wrote."""
    with pytest.raises(AssertionError, match="no such port"):
        follow(tmp_path, Block("", "sh -c 'echo no such port; exit 1'\n", "server", 1))


def test_a_direction_nobody_knows_is_noticed(tmp_path: Path) -> None:
    """A typing error in a comment must not leave a block out."""
    with pytest.raises(AssertionError, match="no such direction"):
        follow(tmp_path, Block("", "true\n", "sever", 1))
