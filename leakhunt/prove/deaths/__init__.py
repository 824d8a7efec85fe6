"""Ways of dying, one per file. :data:`DEATHS` has them by name."""

from collections.abc import Mapping
from typing import Final

from leakhunt.prove.deaths.base import Death, Finding, Party
from leakhunt.prove.deaths.half_close import HalfClose
from leakhunt.prove.deaths.kill import Kill
from leakhunt.prove.deaths.leave import Leave
from leakhunt.prove.deaths.mute import Mute
from leakhunt.prove.deaths.reset import Reset
from leakhunt.prove.deaths.slow import Slow
from leakhunt.prove.deaths.stall import Stall
from leakhunt.prove.deaths.vanish import Vanish

__all__ = ["DEATHS", "Death", "Finding", "Party"]

DEATHS: Final[Mapping[str, Death]] = {
    death.name: death
    for death in (Kill(), Leave(), Reset(), HalfClose(), Stall(), Vanish(), Mute(), Slow())
}
"""All deaths by the name that options and scenario files use."""
