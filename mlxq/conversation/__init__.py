"""`mlxq chat` on a terminal: a conversation, its commands, its screen, and where it is kept."""
