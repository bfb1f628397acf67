"""The commands, one per file: parse the arguments, read rows or enqueue jobs, render the result."""
