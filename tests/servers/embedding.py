"""The everything server with the proxy around it, in one process: an application that embeds both.

It is started and stopped as `sessionproxy run` and `sessionproxy stdio` are, with few of their
options.

Neighbours: `everything` is the server; `tests.clients.test_matrix` starts it.
"""

import argparse
import sys

from sessionproxy.app import ProxyApp
from sessionproxy.config import settings_from
from sessionproxy.serve import serve
from sessionproxy.serve_stdio import serve_stdio

from .everything import ERAS, build


def tell(app: ProxyApp, url: str) -> None:
    sys.stdout.write(f"endpoint: {url}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("front", choices=("run", "stdio"))
    parser.add_argument("--era", choices=ERAS, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--state-dir", required=True)
    given = parser.parse_args()
    values = {"port": given.port, "state_dir": given.state_dir}
    settings = settings_from(values, named="{}")
    if given.front == "stdio":
        return serve_stdio(settings, build(given.era))
    serve(settings, build(given.era), on_ready=tell)
    return 0


if __name__ == "__main__":
    sys.exit(main())
