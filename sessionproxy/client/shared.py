"""Backends of a proxy that is made of a client which is connected: all have its one session.

Neighbours: `client.client` is such a client; `client.relayed` has the parts.
"""

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from .launching import HereLauncher
from .relayed import shared

if TYPE_CHECKING:
    from .client import ProxyClient

logger: Final = logging.getLogger(__name__)


class ConnectedSource:
    """What a plan has of a connected client."""

    kind = "ProxyClient"

    def __init__(self, client: "ProxyClient") -> None:
        self._client = client

    def starts(self) -> HereLauncher:
        logger.warning(
            "all sessions share the one session of %r: what one of them does there, all see",
            self._client,
        )
        return HereLauncher(partial(shared, lambda: self._client.connection.tap))
