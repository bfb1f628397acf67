"""Models that are loaded when they are asked for: which there are, who makes room for whom, and when one sleeps."""
