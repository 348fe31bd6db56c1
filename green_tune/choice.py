"""Which of several adapters to take: three rules over their loss and their emissions.

The same rules choose among the runs of a study and among the versions of a registered model, so
that an alias and the choice that moved it cannot disagree. Pure functions; the lower is the better.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol, TypeVar

from green_tune import points
from green_tune.errors import ConfigError
from green_tune.points import Point, below_chord
from green_tune.results import REUSED, RunRecord

RULES = ("best", "greenest", "balanced")
WITHIN_PERCENT = 5.0  # of the best loss, for `greenest`

Pair = tuple[float, float]  # validation loss in nats per token, emissions in kg CO2e


class Rated(Protocol):
    """What a rule looks at."""

    @property
    def pair(self) -> Pair:
        """Loss and kilograms."""


R = TypeVar("R", bound=Rated)


def pick(rule: str, rated: Sequence[R], *, within_percent: float, known: Sequence[Pair] = ()) -> R:
    """The one that a rule prefers, the first of equals; `known` are further results to judge by.

    best: the lowest loss. greenest: the lowest emissions of those whose loss is within so many
    per cent of the lowest. balanced: the knee of the front, where each further gram begins to buy
    less; its cheap end where it does not bend.
    """
    results = [*known, *(one.pair for one in rated)]
    return min(rated, key=_ORDERS[rule](results, within_percent))


Order = Callable[[Sequence[Pair], float], Callable[[Rated], tuple[float, ...]]]


def _by_loss(_results: Sequence[Pair], _percent: float) -> Callable[[Rated], tuple[float, ...]]:
    return lambda one: one.pair


def _by_emissions(results: Sequence[Pair], percent: float) -> Callable[[Rated], tuple[float, ...]]:
    limit = min(loss for loss, _ in results) * (1 + percent / 100)

    def order(one: Rated) -> tuple[float, ...]:
        loss, kg = one.pair
        return (0, kg, loss) if loss <= limit else (1, loss, kg)

    return order


def _by_bend(results: Sequence[Pair], _percent: float) -> Callable[[Rated], tuple[float, ...]]:
    below = below_chord(results)
    return lambda one: (-below(one.pair), *one.pair[::-1])


_ORDERS: dict[str, Order] = {"best": _by_loss, "greenest": _by_emissions, "balanced": _by_bend}


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """An adapter, the rules that chose it, and the front that it was chosen from."""

    point: Point
    rules: tuple[str, ...]
    front: tuple[Pair, ...]

    @property
    def run_id(self) -> str:
        """The run that holds it: of a trial that was taken over, the earlier one."""
        return address(self.point).split("/")[1]

    @property
    def address(self) -> str:
        """Where it is: runs:/ID/adapter, or runs:/ID/checkpoints/step-N."""
        return address(self.point)


def address(point: Point) -> str:
    """Where the adapter of a point is, if it was kept."""
    run_id = point.record.tags.get(REUSED, point.record.run_id)
    own = point.ended or point == points.every([point.record])[-1]
    return f"runs:/{run_id}/" + ("adapter" if own else f"checkpoints/step-{point.step}")


def choose(
    records: Sequence[RunRecord],
    rules: Sequence[str],
    *,
    within_percent: float,
    is_kept: Callable[[str], bool],
) -> list[Chosen]:
    """The adapters of runs that rules prefer, each once.

    Candidates are the adapters on the front: of ends, and of validations on the way where
    `is_kept` says of their address that they are there.

    Raises:
        ConfigError: no run has an adapter.
    """
    front = _kept_front(_candidates(records), is_kept)
    if not front:
        raise ConfigError("none of these runs has an adapter to promote")
    chosen: dict[str, list[str]] = defaultdict(list)
    for rule in rules:
        chosen[address(pick(rule, front, within_percent=within_percent))].append(rule)
    at = {address(point): point for point in front}
    pairs = tuple(point.pair for point in front)
    return [
        Chosen(point=at[where], rules=tuple(names), front=pairs) for where, names in chosen.items()
    ]


def _kept_front(every: Iterable[Point], is_kept: Callable[[str], bool]) -> list[Point]:
    """The front of what is there: what was not kept may be better, and leaves its place to others.

    Only what may be on the front is asked for, and once, as each question is one to the store.
    """
    left, is_there = list(every), cache(is_kept)
    while gone := {id(p) for p in points.front_of(left) if not is_there(address(p))}:
        left = [point for point in left if id(point) not in gone]
    return points.front_of(left)


def _candidates(records: Sequence[RunRecord]) -> Iterator[Point]:
    """Ends of all runs; of trials also what is on the way, as no other run keeps those adapters."""
    for record in records:
        of_record = points.every([record])
        yield from of_record if record.kind == "trial" else of_record[-1:]


def groups(records: Sequence[RunRecord]) -> Mapping[tuple[str, str], list[RunRecord]]:
    """The runs by base model and task; within a group losses can be compared.

    Raises:
        ConfigError: they cannot, since the data or the base model's files are not the same.
    """
    found: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for record in records:
        found[record.tags.get("base_model", ""), record.params.get("task", "")].append(record)
    for (model, task), group in found.items():
        for tag in ("data_digest", "base_model_commit", "base_digest"):
            counts = Counter(record.tags.get(tag, "") for record in group)
            if len(counts) > 1:
                (most, runs), *_ = counts.most_common()
                raise ConfigError(
                    f"runs of {model} for {task} have {len(counts)} different {tag}, so their "
                    f"losses cannot be compared: choose, such as the {runs} runs of "
                    f"filter=\"tags.{tag} = '{most}'\", or a study="
                )
    return found
