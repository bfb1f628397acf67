"""Doctor: checks, the rules that judge them, and fixes."""
