"""The front: one address before many nodes, LiteLLM's proxy as it comes, and what mlxq adds to it."""
