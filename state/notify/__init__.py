"""Notifications: where they go, which changes they report, and what each target has got."""
