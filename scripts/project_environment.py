"""Lets a script be started by any Python: it starts itself anew with the project's environment."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def use_the_project_environment(script: str) -> None:
    """Replace this process by the Python of `.venv`, if there is one and it is another."""
    environment = ROOT / ".venv"
    python = environment / "bin" / "python"
    if python.exists() and Path(sys.prefix).resolve() != environment.resolve():
        os.execv(python, [str(python), str(Path(script).resolve()), *sys.argv[1:]])
