"""One half of the limit: a Starlette route that reads a body and answers a small JSON.

Served as the proxy is: uvicorn with uvloop and httptools, no access log. The answer is as large
as a small tool answer.
"""

import argparse

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

ANSWER = {
    "jsonrpc": "2.0",
    "id": 1,
    "result": {"content": [{"type": "text", "text": "x" * 24}]},
}


async def answer(request: Request) -> JSONResponse:
    await request.body()
    return JSONResponse(ANSWER)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port: int = parser.parse_args().port
    uvicorn.run(
        Starlette(routes=[Route("/mcp", answer, methods=["POST"])]),
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
