"""A client that never says goodbye: it opens a page, says so on stdout, and stays.

Neighbours: `test_playwright` kills it. Arguments: the proxy's URL, the page's.
"""

import sys

import anyio
from mcp import Client


async def main(url: str, page: str) -> None:
    async with Client(url, mode="legacy") as client:
        result = await client.call_tool("browser_navigate", {"url": page})
        sys.stdout.write("failed\n" if result.is_error else "there\n")
        sys.stdout.flush()
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2])
