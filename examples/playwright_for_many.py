"""A browser for each of many users: `python examples/playwright_for_many.py [OPTION...]`.

Every session has a Playwright of its own, which ends five minutes after its last request. OPTIONs
go to Playwright, such as `--executable-path /usr/bin/chromium --no-sandbox`. The endpoint is
http://127.0.0.1:8080/mcp, or at the port in $PORT.
"""

import os
import sys

from sessionproxy import create_proxy

COMMAND = ["npx", "-y", "@playwright/mcp", "--headless", "--isolated", *sys.argv[1:]]

proxy = create_proxy(COMMAND, name="browsers", idle=300, max_sessions=20, cwd="{session.dir}")

if __name__ == "__main__":
    proxy.run("http", port=int(os.environ.get("PORT", "8080")))
