"""Who is asking: the owner of a request, by the bearer token that it carries.

The tokens themselves are nowhere: the file has their digests, so who reads it can ask for nothing.
It is reread on SIGHUP, and what was revoked is then told to all who were let in with it, so that
long streams end too. Neighbours: `frontend` asks for every request; `app` chooses.
"""

import logging
import re
import secrets
from collections.abc import Callable
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Final, Protocol

from ..config import ConfigError
from ..errors import Unauthorized
from .request import Headers

logger: Final = logging.getLogger(__name__)

ISSUER: Final = "static"
"""Who vouches for the subjects of a token file."""

_NAME: Final = re.compile(r"[A-Za-z0-9_@][A-Za-z0-9._@-]{0,63}")
"""What may stand in a template, too (FAULTS, commands)."""

_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")
_BEARER: Final = re.compile(rb"bearer +([A-Za-z0-9._~+/-]+=*) *", re.IGNORECASE)
"""RFC 6750 section 2.1; the scheme in any case (RFC 9110 section 11.1)."""


def owner_of(issuer: str, subject: str) -> str:
    """Return an owner as one string. An issuer has no space in it, so no two owners are alike."""
    if " " in issuer:
        raise ValueError("an issuer is a name or a URL")
    return f"{issuer} {subject}"


class Credential:
    """What requests are let in with: good for its owner until it is revoked."""

    __slots__ = ("_told", "owner", "revoked")

    def __init__(self, owner: str) -> None:
        self.owner: str = owner
        self.revoked: bool = False
        self._told: set[Callable[[], None]] = set()

    def watch(self, call: Callable[[], None]) -> None:
        """Call `call` when it is revoked, unless `forget` comes first."""
        self._told.add(call)

    def forget(self, call: Callable[[], None]) -> None:
        self._told.discard(call)

    @property
    def watched(self) -> int:
        return len(self._told)

    def revoke(self) -> None:
        self.revoked = True
        told, self._told = self._told, set()
        for call in told:
            call()


class Authenticator(Protocol):
    """Knows whose requests are."""

    def admit(self, headers: Headers) -> Credential:
        """Raises: Unauthorized."""
        ...


class Anybody:
    """Nobody is authenticated: all requests are one owner's. An `Authenticator`."""

    def __init__(self, owner: str) -> None:
        self._credential = Credential(owner)

    def admit(self, headers: Headers) -> Credential:
        return self._credential


class TokenFile:
    """Bearer tokens, known by their digests: a line each, `NAME SHA256HEX`. An `Authenticator`.

    A name may have several tokens: they are all of one owner.
    """

    def __init__(self, path: str) -> None:
        """Raises: ConfigError: it cannot be read, or a line of it is wrong."""
        self._path = Path(path).expanduser()
        self._key = secrets.token_bytes(32)
        self._credentials: dict[bytes, Credential] = {}
        self._take(_read(self._path))

    def __len__(self) -> int:
        return len(self._credentials)

    def admit(self, headers: Headers) -> Credential:
        value = headers.get(b"authorization")
        if value is None:
            raise Unauthorized("the Authorization header is missing")
        found = _BEARER.fullmatch(value.strip())
        credential = found and self._credentials.get(self._mark(sha256(found[1]).digest()))
        if not credential:
            raise Unauthorized("the credential is not good here", presented=True)
        return credential

    def _mark(self, digest: bytes) -> bytes:
        """Return what a digest is looked up by. Nobody outside can know it, so the time that the
        look-up takes tells nothing, whatever token was tried."""
        return blake2b(digest, key=self._key, digest_size=32).digest()

    def reread(self) -> None:
        """Let in from now on who stands in the file, and end what the others have open.

        Raises: ConfigError: it cannot be read, or a line of it is wrong; nothing has changed.
        """
        self._take(_read(self._path))

    def _take(self, names: dict[bytes, str]) -> None:
        before, self._credentials = self._credentials, {}
        for digest, name in names.items():
            mark, owner = self._mark(digest), owner_of(ISSUER, name)
            old = before.get(mark)
            kept = old is not None and old.owner == owner
            self._credentials[mark] = old if old is not None and kept else Credential(owner)
        for mark, credential in before.items():
            if self._credentials.get(mark) is not credential:
                credential.revoke()
        if not names:
            logger.warning("--token-file %s: there is no token in it: nobody is let in", self._path)


def _read(path: Path) -> dict[bytes, str]:
    """Return the names by digest.

    Raises: ConfigError: it names file and line, and never what stands there: it may be a token.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"--token-file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--token-file {path}: not a text file") from None
    names: dict[bytes, str] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not _DIGEST.fullmatch(words[1]):
            raise ConfigError(
                f"--token-file {path}, line {number}: expected NAME SHA256HEX, "
                "a name and the 64 hexadecimal digits of its token's SHA-256"
            )
        if not _NAME.fullmatch(words[0]):
            raise ConfigError(
                f"--token-file {path}, line {number}: a name has up to 64 of "
                "A-Z a-z 0-9 . _ @ - and does not begin with . or -"
            )
        digest = bytes.fromhex(words[1])
        if names.setdefault(digest, words[0]) != words[0]:
            raise ConfigError(f"--token-file {path}, line {number}: the token is of another name")
    return names
