"""Tests of `sessionproxy.wire`."""
