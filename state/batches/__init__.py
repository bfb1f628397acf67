"""Batches of requests and their files: rows and bytes. tasks/batches answers them."""
