"""The gateway process: what apps connect to, and the way to the engines behind it."""
