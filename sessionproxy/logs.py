"""How log lines look: plain, or one JSON object each. For processes of the proxy's own.

Neighbours: `cli` sets it up, and so does `Proxy.run` where the program has not; an application that
embeds the proxy has its own logging.
"""

import json
import logging
from datetime import UTC, datetime

from .core.context import current_exchange, current_session
from .core.session import Session


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (RFC 3339, UTC), level, logger, message; and where it is about
    a session, `session`, its label, and `server`, the name of what it is in front of."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_belonging(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _belonging(record: logging.LogRecord) -> dict[str, object]:
    """Return whose a line is: as whoever wrote it says; else the session of the request that it was
    written for; else that of the task."""
    said = {name: getattr(record, name, None) for name in ("session", "server")}
    exchange = current_exchange.get()
    holder = None if exchange is None else exchange.holder
    found = holder.name if isinstance(holder, Session) else current_session.get()
    if found is not None and said["session"] in (None, found.session):
        return found._asdict()
    return {name: value for name, value in said.items() if value is not None}


def set_up(*, level: str, as_json: bool) -> None:
    """Send the log of this process to stderr."""
    handler = logging.StreamHandler()
    if as_json:
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")
        )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Uvicorn tells of every start and stop; what it has to say of errors stays.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # These tell of every request, of its URL, which may be secret, and even of its headers.
    for name in ("httpx2", "httpcore2", "aiohttp"):
        logging.getLogger(name).setLevel(logging.WARNING)


def is_set_up() -> bool:
    """Return whether this program has said itself where the log goes."""
    ours = logging.getLogger(__package__)
    return bool(logging.getLogger().handlers or ours.handlers)
