"""A gateway for several servers, with hooks: `python examples/gateway.py`.

Two servers under their names, tools hidden and one renamed. One hook writes an audit log, another
lets each user call ten tools in a minute. The endpoint is http://127.0.0.1:8080/mcp, or at the
port in $PORT; a proxy with hooks has none for each server alone, as that would go around them.
"""

import logging
import os
import sys
import time
from collections import defaultdict, deque

from sessionproxy import CallNext, Request, RequestFailed, Result, create_proxy

DEMO = {"command": sys.executable, "args": ["-m", "sessionproxy.demo"]}

SERVERS = {
    "mcpServers": {
        "calculator": {**DEMO, "allow_tools": ["evaluate", "variables"]},
        "counter": {**DEMO, "allow_tools": ["count"], "rename_tools": {"count": "next_number"}},
    }
}

PER_MINUTE = 10

audit = logging.getLogger("audit")
calls: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=PER_MINUTE))


async def write_audit_log(request: Request, call_next: CallNext) -> Result:
    """Log who called what, and how it ended."""
    if request.method != "tools/call":
        return await call_next(request)
    try:
        result = await call_next(request)
    except RequestFailed as error:
        audit.info("%s called %s: error %d", request.owner, request.name, error.code)
        raise
    how = "failed" if result.value.get("isError") else "done"
    audit.info("%s called %s: %s", request.owner, request.name, how)
    return result


async def limit_rate(request: Request, call_next: CallNext) -> Result:
    """Refuse more than so many calls of one user in a minute."""
    if request.method == "tools/call" and request.owner is not None:
        recent, now = calls[request.owner], time.perf_counter()
        if len(recent) == PER_MINUTE and now - recent[0] < 60:
            raise RequestFailed(-32000, "Too many calls; wait a minute.")
        recent.append(now)
    return await call_next(request)


proxy = create_proxy(SERVERS, name="gateway", hooks=[write_audit_log, limit_rate])

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    proxy.run("http", port=int(os.environ.get("PORT", "8080")))
