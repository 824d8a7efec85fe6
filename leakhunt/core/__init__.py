"""Pure logic: no clock, no sockets, no threads. Every input carries its own time."""
