"""`mlxq doctor`: checks, the rules that grade their results, fixes, and the bundle for bug reports."""
