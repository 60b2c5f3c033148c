"""A proxy mounted in FastAPI: `uvicorn examples.fastapi_app:app --timeout-graceful-shutdown 10`.

The endpoint is http://127.0.0.1:8000/tools/mcp, beside the application's own pages. One tool is the
application's own and reads what the application knows.
"""

import sys

from fastapi import FastAPI

from sessionproxy import create_proxy

visits = 0

proxy = create_proxy([sys.executable, "-m", "sessionproxy.demo"], name="tools", idle=300)


@proxy.tool
def number_of_visits() -> int:
    """How often the start page was looked at."""
    return visits


tools = proxy.http_app()
app = FastAPI(lifespan=tools.lifespan)
app.mount("/tools", tools)


@app.get("/")
def start_page() -> dict[str, int]:
    """Count a visit."""
    global visits
    visits += 1
    return {"visits": visits}
