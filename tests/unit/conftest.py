"""A home folder for each test, and the database of a running stack."""

from support.fixtures import own_home_folder, ready_database, rows, short_copies

__all__ = ["own_home_folder", "ready_database", "rows", "short_copies"]
