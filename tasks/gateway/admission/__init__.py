"""What a request must pass before it is answered: key, body, length, turn, and whether it crashed an engine before."""
