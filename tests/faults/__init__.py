"""Every row of FAULTS: what is injected, and what must be seen. `rows` has the table."""
