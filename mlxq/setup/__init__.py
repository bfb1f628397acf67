"""Setup: inspect the machine, propose a stack, let a person change it."""
