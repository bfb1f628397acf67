"""Pure decisions: what is wanted becomes command lines, configuration and steps."""
