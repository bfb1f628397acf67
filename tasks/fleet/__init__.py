"""A fleet of nodes: invite, join, ask each other over pinned TLS, and notice who is away. No node waits for another."""
