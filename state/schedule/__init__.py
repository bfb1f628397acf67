"""Schedules: what runs when, and which jobs came of it."""
