"""Answers the lines of batches, one job a batch."""
