"""Tests of `sessionproxy.backends`."""
