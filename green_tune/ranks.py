"""Which of several processes this is, when torchrun or accelerate has started them together.

One process of each node measures it, one of all writes the run. Alone, a process is all of these.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rank:
    """The place of a process among all, `number` of `world`, and on its node, `local` of `here`."""

    number: int = 0
    world: int = 1
    local: int = 0
    here: int = 1

    @property
    def writes(self) -> bool:
        """True for the one process that has the run."""
        return self.number == 0

    @property
    def measures(self) -> bool:
        """True for the one process of each node that measures it."""
        return self.local == 0


def this(environment: Mapping[str, str] = os.environ) -> Rank:
    """This process, by the variables that torchrun and accelerate set."""
    world = int(environment.get("WORLD_SIZE") or 1)
    return Rank(
        number=int(environment.get("RANK") or 0),
        world=world,
        local=int(environment.get("LOCAL_RANK") or 0),
        here=int(environment.get("LOCAL_WORLD_SIZE") or world),
    )
