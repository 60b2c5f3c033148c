"""How the file's mistakes are told: one line each, by name, and never a value, which may be secret.

Neighbours: all of the room.
"""

import re
from typing import Final

SERVER_NAME: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]{1,64}")
"""It stands before names of tools, in URIs and in the path of an endpoint, where `.` and `..` would
lead elsewhere."""

SERVER_NAMES: Final = "1 to 64 letters, digits, hyphens, underscores and dots (not . or ..)"

NEW_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
"""2025-11-25 server/tools#tool-names."""

NEW_NAMES: Final = "1 to 128 letters, digits, hyphens, underscores and dots"

_KINDS: Final = {
    "str": "a string",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}
"""What msgspec calls a kind of value, and what people do. That null stands for nothing goes without
saying."""

_PLAIN: Final = re.compile(r"[\w./@$-]{0,128}")


def shown(name: str) -> str:
    """Return a name from the file, as far as it is a plain one.

    Who writes `"Authorization: Bearer ..."` or `"KEY=..."` as a name has a secret in it.
    """
    plain = _PLAIN.match(name)
    start = "" if plain is None else plain[0]
    return start if start == name and name else f"{start}..."


def expected(text: str) -> str:
    """Return what msgspec expected, in plain words, and nothing of what there was."""
    found = re.match(r"Expected `([^`]+)`(?: (of length|>=) (?:>= )?(\S+))?", text)
    if found is None:
        return "expected a number that is in range" if "range" in text else "expected another value"
    kinds, bound, number = found.groups()
    words = [_KINDS[kind] for kind in _KINDS if kind in kinds.split(" | ")]
    told = "expected " + " or ".join(dict.fromkeys(words))
    if bound == "of length":
        return told + (" that is not empty" if number == "1" else f" of {number}")
    return told + (f" of at least {float(number):g}" if bound else "")
