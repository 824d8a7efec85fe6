"""The observer outside: process, sockets, agent client."""
