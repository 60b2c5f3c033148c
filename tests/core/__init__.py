"""Tests of `sessionproxy.core`."""
