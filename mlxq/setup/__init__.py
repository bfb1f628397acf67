"""`mlxq setup`: inspect the machine, recommend a stack, let the user change it."""
