"""Search spaces that are made by hand."""

from typing import Any

from green_tune.space import Dimension, Space


def dimension(name: str, scale: Any, *values: Any) -> Dimension:
    return Dimension(name=name, scale=scale, values=values)


def space_of(*dimensions: Dimension) -> Space:
    return {one.name: one for one in dimensions}


CHOICES = space_of(
    dimension("batch_size", "choice", 8, 2, 16),
    dimension("epochs", "choice", 1, 2, 3),
    dimension("init", "choice", "gaussian", "zero"),
)
