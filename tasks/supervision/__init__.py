"""Services: start, stop, watchdog, restarts and handover."""
