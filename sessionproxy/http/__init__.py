"""What everything that listens on HTTP shares: who may ask at all, and what was asked."""

from .auth import Anybody, Authenticator, Credential, TokenFile, owner_of
from .guard import Guard, is_loopback
from .request import Headers, header_of, media_type, path_within, read_body, read_headers
from .tls import Certificate

__all__ = [
    "Anybody",
    "Authenticator",
    "Certificate",
    "Credential",
    "Guard",
    "Headers",
    "TokenFile",
    "header_of",
    "is_loopback",
    "media_type",
    "owner_of",
    "path_within",
    "read_body",
    "read_headers",
]
