"""One file per server framework, each giving the agent a ConnectionHandle."""
