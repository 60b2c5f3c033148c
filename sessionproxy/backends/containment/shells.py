"""What a shell between us and a backend needs, and what it must not change.

Neighbours: `namespaces` and `cgroups` start backends through one.
"""

import os
import re
import shutil
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

SHELL: Final = "/bin/sh"
"""Not looked for: the command's PATH would be, and need not have one."""

SET_BY_SHELLS: Final = ("PWD", "OLDPWD", "SHLVL", "_")
"""Variables that shells set for what they start."""

IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@lru_cache
def path_of(program: str) -> str:
    """Return where a helper is: its name where it is not, so that trying to run it says so."""
    found = shutil.which(program)
    return program if found is None else os.path.abspath(found)


def kept_from_shells(env: Mapping[str, str]) -> list[str]:
    """Return, as assignments for env(1), what a shell on the way would set, or drop because its
    name is no identifier."""
    lost = (name for name in env if name in SET_BY_SHELLS or not IDENTIFIER.fullmatch(name))
    return [f"{name}={env[name]}" for name in lost]
