"""What to leave out so that an order stays within a budget: single changes, the mildest of each.

A proposal is an order like any other, offered again; so what it would take is known as well as the
order itself was.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from green_tune import order as orders
from green_tune.config import to_text
from green_tune.errors import ConfigError
from green_tune.order import Order

Takes = Callable[[Order], float]  # kg CO2e, or nothing but a ConfigError where it has no room

SHARES = (0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)  # of what was asked, the mildest first


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One change of the options, and what the order then takes."""

    changes: Mapping[str, str]
    emissions_kg: float

    def __str__(self) -> str:
        return " ".join(f"{name}={text}" for name, text in self.changes.items())


def proposals(
    command: str, asked: Mapping[str, str], takes: Takes, budget_kg: float, examples: int
) -> list[Proposal]:
    """For each option that can be lowered the mildest value within the budget.

    Where none is enough alone, one proposal that lowers one after the other, each to its least,
    and the last of them no further than it must. `examples` are those of the training data.
    """
    ladders = [options for options in _options(command, asked, examples) if options]
    alone = [_mildest(command, asked, options, takes, budget_kg) for options in ladders]
    if found := [proposal for proposal in alone if proposal]:
        return found
    lowered: dict[str, str] = {}
    for options in ladders:
        steps = [{**lowered, **changes} for changes in options]
        if proposal := _mildest(command, asked, steps, takes, budget_kg):
            return [proposal]
        lowered = steps[-1]
    return []


def _mildest(
    command: str, asked: Mapping[str, str], steps: Sequence[dict[str, str]], takes: Takes,
    budget_kg: float,
) -> Proposal | None:  # fmt: skip
    """The first of several changes that is within the budget."""
    for changes in steps:
        cost = _cost(command, {**asked, **changes}, takes)
        if cost is not None and cost <= budget_kg:
            return Proposal(changes=changes, emissions_kg=cost)
    return None


def _cost(command: str, asked: Mapping[str, str], takes: Takes) -> float | None:
    try:
        return takes(orders.read(command, asked))
    except ConfigError:  # a value that another option forbids
        return None


def _options(
    command: str, asked: Mapping[str, str], examples: int
) -> Iterator[Sequence[dict[str, str]]]:
    """For each option its lower values, the mildest first."""
    texts = orders.filled(command, asked)
    if command != "train":
        yield [{"trials": str(n)} for n in _lower(int(texts["trials"]), least=2)]
    if command == "grid":
        seeds = texts["seed"].split(",")
        yield [{"seed": ",".join(seeds[:n])} for n in range(len(seeds) - 1, 0, -1)]
    yield [{"epochs": text} for text in _epochs(texts["epochs"])]
    most = min(int(texts["max_train_examples"]) or examples, examples)
    fewer = dict.fromkeys(max(1, int(most * share)) for share in SHARES)
    yield [{"max_train_examples": str(n)} for n in fewer]
    if int(texts["quality_examples"]):
        yield [{"quality_examples": "0"}]
    yield [{"evals": str(n)} for n in _lower(int(texts["evals"]), least=1)]


def _lower(number: int, *, least: int) -> Iterator[int]:
    yield from range(number - 1, least - 1, -1)


def _epochs(text: str) -> Iterator[str]:
    """Fewer epochs; of a range a lower upper end."""
    if "," in text:
        values = sorted(text.split(","), key=int)  # the most epochs are the first to go
        yield from (",".join(values[:n]) for n in range(len(values) - 1, 0, -1))
    elif ".." in text:
        low, high = (int(end) for end in text.split(".."))
        yield from (f"{low}..{n}" if n > low else to_text(low) for n in _lower(high, least=low))
    else:
        yield from map(str, _lower(int(text), least=1))
