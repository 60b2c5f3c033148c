"""The tests: a file per module, rooms as in the package, and `rig` with what they share."""
