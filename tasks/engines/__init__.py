"""Engines: how each is launched, queried and benchmarked."""
