"""Tests of `sessionproxy.http`: pure."""
