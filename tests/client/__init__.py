"""The Python API, module by module; `tests.parity` has what it is for."""
