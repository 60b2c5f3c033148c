"""Tests of `sessionproxy.frontend`."""
