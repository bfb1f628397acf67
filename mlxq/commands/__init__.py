"""One module a command: parse, ask, render."""
