"""Notifications: notice changes, and deliver messages about them to the targets."""
