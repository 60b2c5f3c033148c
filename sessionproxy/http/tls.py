"""The certificate that the proxy shows, and the TLS it speaks.

Reread on SIGHUP, for the connections that come after. Neighbours: `serve` makes it;
`frontend.door` shakes hands with it.
"""

import ssl
from pathlib import Path

from ..config import ConfigError


class Certificate:
    """A chain and its key, in PEM files, and a context that has them."""

    def __init__(self, cert: str, key: str) -> None:
        """Raises: ConfigError: one of them cannot be read, or they do not belong together."""
        self._cert = Path(cert).expanduser()
        self._key = Path(key).expanduser()
        self.context: ssl.SSLContext = _context()
        self.reread()

    def reread(self) -> None:
        """Show from now on what the files have.

        Raises: ConfigError: as above; nothing has changed.
        """
        for option, path in (("--tls-cert", self._cert), ("--tls-key", self._key)):
            try:
                path.open("rb").close()
            except OSError as error:
                raise ConfigError(f"{option} {path}: {error.strerror}") from None
        self._load(_context())  # a pair that does not fit would spoil the one in use
        self._load(self.context)

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self._cert, self._key, password=self._no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError(
                    f"--tls-key {self._key}: not the key of --tls-cert {self._cert}"
                ) from None
            raise ConfigError(
                f"--tls-cert {self._cert}: expected a certificate chain and its key "
                f"({self._key}) as PEM files"
            ) from None

    def _no_password(self) -> str:
        raise ConfigError(f"--tls-key {self._key}: the key has a password; expected one without")


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    return context
