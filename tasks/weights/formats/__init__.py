"""Formats of weights: what the headers of their files say."""
