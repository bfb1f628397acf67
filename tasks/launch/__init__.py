"""Programs that run inside the child processes."""
