"""Which models exist, which fit a machine, and how fast they run. Pure: no machine, network or database."""
