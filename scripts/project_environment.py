"""Lets a script be started by any Python: it starts itself anew with the project's environment."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def use_the_project_environment(script: str) -> None:
    """Replace this process by the Python of `.venv`, if there is one and it is another. Exits where
    there is none, and this one has not what the project needs."""
    environment = ROOT / ".venv"
    python = environment / "bin" / "python"
    if python.exists():
        if Path(sys.prefix).resolve() != environment.resolve():
            os.execv(python, [str(python), str(Path(script).resolve()), *sys.argv[1:]])
    elif find_spec("mcp") is None:
        sys.exit(
            f"{Path(script).name}: there is no .venv yet; scripts/run makes it, scripts/test too"
        )
