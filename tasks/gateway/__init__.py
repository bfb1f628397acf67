"""The gateway process: the API that apps use, and the relay to the engines."""
