"""The engines: how each is started, asked and measured."""
