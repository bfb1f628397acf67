"""The worker, its queue, and the tasks. The package is empty; `tasks.registry` imports every task module."""
