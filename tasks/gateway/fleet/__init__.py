"""What nodes of the fleet ask a gateway, over TLS alone: to join, how this node is, jobs of an allow-list, to leave."""
