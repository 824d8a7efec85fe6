"""``kill``: the client's process gets SIGKILL; its kernel says so (FIN or RST). A control."""

from leakhunt.prove.deaths.base import Party, ToldDeath


class Kill(ToldDeath):
    """SIGKILL: the process dies, and its kernel closes its sockets for it."""

    name = "kill"
    about = "SIGKILL; the client's kernel sends FIN or RST (a control: any server notices)"

    async def strike(self, party: Party) -> None:
        """Kill the workers and reap them."""
        party.died(party.group.kill())
        await party.group.close()
