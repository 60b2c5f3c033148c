"""FastMCP's documented recipe for stateful servers, as a target. Runs in FastMCP's own environment.

The backend is the command, or after `--url` the URL of a server.

`fastmcp` is no dependency of the project, so its types are unknown here.
"""
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false

import argparse

from fastmcp.client.transports import StdioTransport
from fastmcp.server.providers.proxy import FastMCPProxy, StatefulProxyClient


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    command: list[str] = options.command
    if command[0] == "--url":
        client = StatefulProxyClient(command[1])
    else:
        client = StatefulProxyClient(StdioTransport(command=command[0], args=command[1:]))
    proxy = FastMCPProxy(client_factory=client.new_stateful, name="recipe")
    proxy.run(
        transport="http",
        host="127.0.0.1",
        port=options.port,
        path="/mcp",
        show_banner=False,
        log_level="error",
        uvicorn_config={"access_log": False},
    )


if __name__ == "__main__":
    main()
