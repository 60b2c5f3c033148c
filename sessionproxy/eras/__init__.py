"""Handshake <-> modern, as wrappers around a backend. Empty until the modern era is served."""
