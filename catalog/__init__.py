"""Which models exist and which of them fit a machine. Pure: no machine, no network, no database."""
