"""Pure decisions: command lines, configuration, placement, and what the watchdog should do."""
