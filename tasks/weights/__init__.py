"""Weights: found, downloaded, checked, converted and deleted."""
