"""Ollama's own API, for programs that know nothing else: its words for what the relay and the stack do already."""
