"""What the client of HTTP raises, as errors of ours.

Its own texts have the whole URL in them, which may be secret, and addresses of the operator's
network: what a user reads is worded here. Neighbours: `web`, where all of it is raised.
"""

import os
import socket
import ssl
from typing import Final

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from ...errors import BackendError, BackendFailed, BackendUnreachable


def _of_socks() -> tuple[type[Exception], ...]:
    try:
        import aiohttp_socks as socks
    except ImportError:  # `target` lets no such proxy pass, then
        return ()
    return socks.ProxyConnectionError, socks.ProxyError, socks.ProxyTimeoutError


_SOCKS: Final = _of_socks()

_NOT_SENT: Final[tuple[type[Exception], ...]] = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientConnectorCertificateError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ConnectionTimeoutError,
    ValueError,  # of what it cannot write, a name that cannot be one among them
    EOFError,  # of a SOCKS proxy
    *_SOCKS,
)
"""With these nothing of a request has left."""

RAISED: Final[tuple[type[Exception], ...]] = (
    aiohttp.ClientError,
    HttpProcessingError,  # in the middle of an answer, of the parser that is written in Python
    OSError,  # of TLS, in the middle of a stream
    ValueError,
    EOFError,
    *_SOCKS,
)


def of_request(error: Exception) -> BackendError:
    """Return `BackendUnreachable` where nothing of a request has left; else as `of_answer`. To be
    raised outside of `except`, so that it keeps no frames."""
    if isinstance(error, _NOT_SENT):
        return BackendUnreachable(f"The backend cannot be reached: {_why(error)}.")
    return of_answer(error)


def of_answer(error: Exception) -> BackendFailed:
    """Return what is raised once a request was sent: nobody knows what has become of it."""
    return BackendFailed(f"The connection to the backend broke: {_why(error)}.")


def _why(error: Exception) -> str:
    """Return the reason, without an address or a URL."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return str(error.certificate_error).rstrip(".")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the HTTP proxy answered {error.status}"
    if isinstance(error, (*_SOCKS, EOFError)):
        return "the SOCKS proxy did not let us through"
    if isinstance(error, ValueError):
        return "the request cannot be written"
    if isinstance(error, aiohttp.ClientResponseError | HttpProcessingError):
        return "what it says is not HTTP"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it hung up without an answer"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "it hung up in the middle of its answer"
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return f"the HTTP proxy: {_of_system(error.os_error)}"
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    return _of_system(error)


def _of_system(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "TLS failed"
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return "it hung up"
