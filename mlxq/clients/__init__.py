"""The programs that `mlxq connect` sets up, one a file."""
