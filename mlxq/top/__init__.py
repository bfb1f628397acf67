"""`mlxq top`: what it draws, and what its keys do."""
