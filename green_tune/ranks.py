"""Which of several processes this is, when torchrun or accelerate has started them together.

One process of each node measures it, one of all writes the run. Alone, a process is all of these.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from green_tune.errors import ConfigError

LAUNCHER = "ACCELERATE_MIXED_PRECISION"  # which every `accelerate launch` sets
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True, kw_only=True)
class Rank:
    """The place of a process among all, `number` of `world`, and on its node, `local` of `here`."""

    number: int = 0
    world: int = 1
    local: int = 0
    here: int = 1
    shards: bool = False  # `accelerate launch --use_fsdp` asks for it, whether it fits or not

    @property
    def writes(self) -> bool:
        """True for the one process that has the run."""
        return self.number == 0

    @property
    def measures(self) -> bool:
        """True for the one process of each node that measures it."""
        return self.local == 0

    @property
    def divisions(self) -> tuple[int, ...]:
        """Over how many processes a base model may be divided; 1: each has the whole of it.

        The best first: those of a node are closer to one another than all.
        """
        near = self.here if self.world % self.here == 0 else self.world
        several = tuple(sorted({near, self.world} - {1}))
        return several if several and self.shards else (1, *several)


ALONE = Rank()


def this(environment: Mapping[str, str] = os.environ) -> Rank:
    """This process, by the variables that torchrun and accelerate set.

    Raises:
        ConfigError: they are there and make no sense.
    """
    found = {name: environment.get(name, "") for name in NAMES}
    try:
        number, world, local, here = (int(text) for text in found.values() if text)
    except ValueError:
        if LAUNCHER in environment and "MASTER_ADDR" in environment and not found["WORLD_SIZE"]:
            raise ConfigError(  # --cpu --num_processes 2, without MPI
                "accelerate was to start several processes on CPUs, and has started one: use "
                "torchrun --nproc_per_node N"
            ) from None
        if found["WORLD_SIZE"] in ("", "1"):  # nobody has started several
            return Rank()
        raise _nonsense(found) from None
    if not (0 <= number < world and 0 <= local < here <= world):
        raise _nonsense(found)
    shards = environment.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    return Rank(number=number, world=world, local=local, here=here, shards=shards)


def _nonsense(found: Mapping[str, str]) -> ConfigError:
    named = " ".join(f"{name}={text}" for name, text in found.items())
    return ConfigError(
        f"{named} make no sense together: start with torchrun or accelerate launch, or unset them"
    )
