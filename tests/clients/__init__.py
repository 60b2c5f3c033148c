"""Unmodified clients against the proxy: SDKs, the Inspector, the conformance suite, Playwright."""
