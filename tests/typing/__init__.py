"""What type checkers make of the public names; nothing here is run."""
