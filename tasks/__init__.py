"""What the worker does. Importing this package costs nothing; `tasks.registry` imports every task module."""
