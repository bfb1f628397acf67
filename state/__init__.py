"""The tables of the SQLite file, one per file, and the base of all packages: errors, paths, settings, secrets."""
