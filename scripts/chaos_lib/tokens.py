"""Who may call: a token for each client, in the file that the proxy reads.

Neighbours: `arena` starts the proxy with it; `callers` and `moderns` send the tokens.
"""

import secrets
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path


class Tokens:
    """One token a name; each name is an owner."""

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self.path = path
        self._tokens = {name: secrets.token_urlsafe(24) for name in names}
        self._revoked: set[str] = set()
        self._write()

    def headers(self, name: str) -> Mapping[str, str]:
        """Return what a client of this name sends along."""
        return {"authorization": f"Bearer {self._tokens[name]}"}

    def others(self, name: str) -> Mapping[str, str]:
        """Return what another one sends along; whoever is alone: nothing."""
        found = [other for other in self._tokens if other != name]
        return self.headers(found[0]) if found else {}

    def revoke(self, name: str) -> None:
        """Leave it out of the file, which the proxy has to read again."""
        self._revoked.add(name)
        self._write()

    def restore(self, name: str) -> None:
        self._revoked.discard(name)
        self._write()

    def _write(self) -> None:
        good = {name: token for name, token in self._tokens.items() if name not in self._revoked}
        lines = [f"{name} {sha256(token.encode()).hexdigest()}" for name, token in good.items()]
        new = self.path.with_suffix(".new")
        new.write_text("\n".join((*lines, "")))
        new.replace(self.path)  # a proxy may be starting
