"""One backend for all sessions, for a server without state: `python examples/shared_backend.py`.

However many clients connect, one process serves them, started with the first request and stopped a
minute after the last session gave it back. Never do so with a browser or a shell: it would be
everybody's. The endpoint is http://127.0.0.1:8080/mcp, or at the port in $PORT.
"""

import os
import sys

from sessionproxy import create_proxy

proxy = create_proxy(
    [sys.executable, "-m", "sessionproxy.demo"], sessions="shared", shared_linger=60
)

if __name__ == "__main__":
    proxy.run("http", port=int(os.environ.get("PORT", "8080")))
