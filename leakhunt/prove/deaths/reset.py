"""``reset``: the connection ends with a RST, without a close frame."""

from leakhunt.prove.deaths.base import Party, ToldDeath, now


class Reset(ToldDeath):
    """SO_LINGER 0 and close: the server reads ECONNRESET."""

    name = "reset"
    about = "a TCP reset without a close frame"

    async def strike(self, party: Party) -> None:
        """Let the clients reset their connections."""
        party.died(now())
        await party.group.act("reset")
