"""Making a client vanish: no FIN, no RST, its host is simply no longer there."""
