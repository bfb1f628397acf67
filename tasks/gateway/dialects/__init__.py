"""The dialects: what a body may hold, what an engine is asked, and how its answer is told."""
