"""What tests share: a real proxy process, real backends, and looks at the process table."""
