"""`${VAR}` in the file's values: replaced by what the proxy's environment has.

As Claude Code (`${VAR}`, `${VAR:-default}`) and VS Code (`${env:VAR}`) write them. What came from
the environment is not looked at again. Neighbours: `server` says which values have them.
"""

import re
from collections.abc import Mapping
from typing import Final

from ..config import ConfigError

_REFERENCE: Final = re.compile(r"\$\{(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_ASKED: Final = re.compile(r"\$\{(input|command|config):[^}]*\}")
"""What an editor asks its user, or itself."""


def filled(text: str, environ: Mapping[str, str], *, where: str) -> str:
    """Return a text in which values stand for their variables.

    Raises: ConfigError: there is no such variable.
    """
    asked = _ASKED.search(text)
    if asked is not None:
        kind = f"${{{asked[1]}:...}}"
        raise ConfigError(f"{where}: {kind} needs an editor; expected a value, or ${{VARIABLE}}")

    def value_of(reference: re.Match[str]) -> str:
        name = reference[1]
        if name in environ:
            return environ[name]
        if reference[2] is None:
            raise ConfigError(f"{where}: ${{{name}}}: there is no such variable")
        return reference[2]

    return _REFERENCE.sub(value_of, text)
