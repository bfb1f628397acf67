"""What is true now: one SQLite file, and the floor the other packages stand on (errors, paths, settings)."""
