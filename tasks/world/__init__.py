"""The only code that touches the machine, the network and other processes."""
