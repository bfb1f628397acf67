"""Figures over time: benchmarks, samples of the services, usage of keys, and what the cloud cost."""
