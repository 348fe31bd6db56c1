"""A version of a registered model, as the registry has it: an adapter, and what its tags say of it.

Tags are texts that anybody may write: what is no number is NaN, and what is no front is none. How
versions get into the registry and out of it, `registry` knows.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from green_tune.choice import Pair
from green_tune.results import KIND

ADAPTER_KIND = "adapter"
ADDRESS, RULES_TAG = "green_tune.adapter", "green_tune.rules"
FRONT_TAG, SEAL = "green_tune.front_points", "green_tune.manifest"
QUALITY_ON = "quality_on"  # the examples that task metrics are of, such as "sample test"
ODD = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of a registered model, as the registry has it."""

    name: str
    number: int
    run_id: str
    source: str
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}/{self.number}"

    @cached_property
    def pair(self) -> Pair:
        """Validation loss in nats per token, and emissions in kg; NaN where a tag is no number."""
        return self.figure("val_loss"), self.figure("emissions_kg")

    def figure(self, name: str) -> float:
        """A figure that a tag holds; NaN where it holds none."""
        try:
            return float(self.tags.get(name, "nan"))
        except ValueError:
            return math.nan

    @property
    def is_ours(self) -> bool:
        """Whether green-tune promoted it."""
        return self.tags.get(KIND) == ADAPTER_KIND and all(map(math.isfinite, self.pair))

    @property
    def terms(self) -> tuple[str, ...]:
        """What has to be equal for losses to be compared: task, data, base model."""
        names = ("task", "data_digest", "base_model", "base_revision")
        return tuple(self.tags.get(name, "") for name in names)

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules by which it was chosen."""
        return tuple(filter(None, self.tags.get(RULES_TAG, "").split(",")))

    @property
    def front(self) -> list[Pair]:
        """The front that it was chosen from."""
        try:
            pairs = [(float(loss), float(kg)) for loss, kg in json.loads(self.tags[FRONT_TAG])]
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            return []
        return pairs if all(math.isfinite(x) for pair in pairs for x in pair) else []


def name_for(base_model: str, task: str) -> str:
    """A registered model's name for adapters of a base model for a task."""
    return ODD.sub("-", f"{base_model}-{task}").strip("-.")
