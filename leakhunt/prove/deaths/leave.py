"""``leave``: a clean goodbye, close frame and all. A control."""

from leakhunt.prove.deaths.base import Party, ToldDeath, now


class Leave(ToldDeath):
    """Close frame 1000, the server's answer, FIN."""

    name = "leave"
    about = "a clean close handshake (a control)"

    async def strike(self, party: Party) -> None:
        """Let the clients say goodbye."""
        party.died(now())
        await party.group.act("leave")
