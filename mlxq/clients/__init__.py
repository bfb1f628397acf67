"""The programs that `mlxq connect` configures, one per file."""
