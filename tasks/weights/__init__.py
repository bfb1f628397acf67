"""Weights: find, download, check, convert and delete model files."""
