"""What faces MCP clients: streamable HTTP for the handshake revisions, and health."""

from .endpoint import Endpoint
from .health import Health

__all__ = ["Endpoint", "Health"]
