"""What everything that listens on HTTP shares: who may ask at all, and what was asked."""

from .guard import Guard, is_loopback
from .request import Headers, header_of, media_type, path_within, read_body, read_headers

__all__ = [
    "Guard",
    "Headers",
    "header_of",
    "is_loopback",
    "media_type",
    "path_within",
    "read_body",
    "read_headers",
]
