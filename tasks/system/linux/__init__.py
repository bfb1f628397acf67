"""Linux alone: its process table and the exits of processes."""
