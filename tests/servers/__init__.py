"""MCP servers that the tests put behind the proxy; each runs as a process of its own over stdio."""
