"""The typed Python API. Empty for now; `sessionproxy.http_app` is the way to embed the proxy."""
