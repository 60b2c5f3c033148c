"""MCP servers that the tests put behind the proxy; each runs as a process of its own over stdio."""

import gc
import sys

if sys.argv[0] == "-m":
    # One is being started, as a run of all tests does a thousand times. What the SDK makes of its
    # types while it is imported is never garbage, and looking for some takes a tenth of that time.
    gc.disable()
