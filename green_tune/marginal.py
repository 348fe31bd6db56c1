"""What a loss costs, and what the next hundredth of it: grams along courses and fronts.

The emissions of a run say nothing of its learning rate, which changes not what a step costs but how
far it leads. Grams to a loss do; so do loss and grams at equal numbers of tokens. Losses compare
only within a block, so wherever several records are taken they must be those of one. Pure functions
over records; kilograms are taken as the records have them.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from green_tune import points
from green_tune.points import Point
from green_tune.results import Evaluation, RunRecord

G_PER_KG = 1000.0
HUNDREDTH = 0.01  # nats
REACHED = 0.75  # of the runs: a target that only the best reach compares the best with nobody
TRAINED = 0.9  # of the runs: one that was ended at once must not end the comparison of all others
SAME = 1e-6  # relative: courses note six digits of their progress
MILLION, BILLION = 1e6, 1e9
MJ_PER_KWH = 3.6e9  # millijoules

# MLPerf Training, Llama-2-70B LoRA on GovReport (mlcommons.org): energy at the wall of whole nodes
# from the logs of two submissions with power, v4.0 (Sustainable Metal Cloud, 8 x H100) and v5.0
# (Lenovo, 8 x B200), in megajoules. Both stacks were tuned by experts.
MLPERF_TOKENS = 3072 * 8192  # samples times the length to which they are packed
MLPERF_BILLIONS = 70
MLPERF_MJ = {"8 x H100": 12.09, "8 x B200": 6.39}
FLOOR_MJ_PER_TOKEN_PER_BILLION = {  # millijoules: 6.9 and 3.6
    name: megajoules * 1e9 / MLPERF_TOKENS / MLPERF_BILLIONS
    for name, megajoules in MLPERF_MJ.items()
}


class Price(NamedTuple):
    """What the next 0.01 nats cost at a loss: the loss in nats per token, and g CO2e."""

    loss: float
    grams: float


class AtTokens(NamedTuple):
    """A run at a number of trained tokens: its loss in nats per token, and its g CO2e so far."""

    tokens: float
    loss: float
    grams: float


def grams_to(record: RunRecord, loss: float) -> float | None:
    """The g CO2e that a run had spent when its validation loss first was that low.

    Between two validations both are taken to go straight. What it had spent before its first
    validation is in it. None where it never was that low, or noted no course.
    """
    course = record.course
    if course and course[0].val_loss <= loss:
        return course[0].emissions_kg * G_PER_KG
    for before, after in pairwise(course):
        if after.val_loss <= loss:
            part = (before.val_loss - loss) / (before.val_loss - after.val_loss)
            return _between(before.emissions_kg, after.emissions_kg, part) * G_PER_KG
    return None


def target(records: Iterable[RunRecord]) -> float | None:
    """The lowest loss that at least `REACHED` of a block's runs with a course reach by training.

    None where no run has a course, or where too many start as low as they ever come.
    """
    courses = [record.course for record in records if record.course]
    reached = sorted(min(e.val_loss for e in course) for course in courses)
    if not reached:
        return None
    loss = reached[math.ceil(REACHED * len(reached)) - 1]
    trained = [c for c in courses if c[0].val_loss > loss >= min(e.val_loss for e in c)]
    return loss if len(trained) >= REACHED * len(courses) else None


def per_hundredth(record: RunRecord) -> list[Price]:
    """What the next 0.01 nats cost along a run's course, the highest loss first.

    The prices are slopes of the lower convex envelope of its validations, from the first to the
    lowest loss: each is the least that any later validation offers, so no noise makes one negative,
    and none is below the one before. Empty for a course that does not fall.
    """
    return _prices([(e.emissions_kg, e.val_loss) for e in record.course])


def front_per_hundredth(records: Sequence[RunRecord]) -> list[Price]:
    """The same along a block's front, of all validations of all runs; see `per_hundredth`."""
    return _prices([point.pair[::-1] for point in points.front_of(points.every(records))])


def knee(records: Sequence[RunRecord]) -> Point | None:
    """Where a block's front bends most, by the rule of `points.knee`; None where it does not."""
    return points.knee(points.every(records))


def at_tokens(records: Sequence[RunRecord]) -> dict[str, AtTokens]:
    """Each run of a block at one number of tokens, the largest that `TRAINED` of them came to.

    By run id. Between two validations loss and grams are taken to go straight. Left out is what
    never came that far or has no course, and what had no validation between its start and there:
    the first steps gain so much that a straight line says nothing. A run that goes on from there
    has a higher learning rate than one that ends there: its schedule is longer.
    """
    looked = [r for r in records if r.course and r.metrics.get("train_tokens")]
    if not looked:
        return {}
    trained = sorted((r.metrics["train_tokens"] for r in looked), reverse=True)
    tokens = trained[math.ceil(TRAINED * len(trained)) - 1]
    found = {r.run_id: _at(r.course, tokens / r.metrics["train_tokens"]) for r in looked}
    return {run_id: AtTokens(tokens, at[0], at[1] * G_PER_KG) for run_id, at in found.items() if at}


def grams_per_million_tokens(record: RunRecord) -> float | None:
    """The g CO2e of a whole run per million tokens that it trained on; None without either."""
    kg, tokens = record.metrics.get("emissions_kg"), record.metrics.get("train_tokens")
    return kg * G_PER_KG / (tokens / MILLION) if kg is not None and tokens else None


def mj_per_token_per_billion(record: RunRecord) -> float | None:
    """The millijoules of a whole run per trained token and billion base parameters.

    To compare with `FLOOR_MJ_PER_TOKEN_PER_BILLION`. None where a part is missing.
    """
    kwh, tokens = record.metrics.get("energy_kwh"), record.metrics.get("train_tokens")
    parameters = record.metrics.get("base_parameters")
    if kwh is None or not tokens or not parameters:
        return None
    return kwh * MJ_PER_KWH / tokens / (parameters / BILLION)


def _between(low: float, high: float, part: float) -> float:
    return low + part * (high - low)


def _prices(curve: Sequence[tuple[float, float]]) -> list[Price]:
    """Slopes of the envelope of pairs of kilograms and loss, as grams per hundredth."""
    return [
        Price(loss, HUNDREDTH * G_PER_KG * (more - kg) / (loss - lower))
        for (kg, loss), (more, lower) in pairwise(_envelope(curve))
    ]


def _envelope(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lower convex envelope up to the lowest loss (Andrew's monotone chain, 1979)."""
    hull: list[tuple[float, float]] = []
    for point in sorted(curve):
        if hull and point[1] >= hull[-1][1]:
            continue  # it costs more and is no better
        while len(hull) > 1 and _is_above(hull[-1], hull[-2], point):
            hull.pop()
        hull.append(point)
    return hull


def _is_above(
    middle: tuple[float, float], left: tuple[float, float], right: tuple[float, float]
) -> bool:
    """True where the middle lies on or above the line from left to right."""
    (x, y), (x0, y0), (x1, y1) = middle, left, right
    return (y - y0) * (x1 - x0) >= (y1 - y0) * (x - x0)


def _at(course: Sequence[Evaluation], of_all: float) -> tuple[float, float] | None:
    """Loss and kilograms where that part of its training was done; None where nothing says so."""
    progress = of_all * course[-1].progress
    for after in course[1:]:
        if math.isclose(progress, after.progress, rel_tol=SAME):
            return after.val_loss, after.emissions_kg
    for before, after in pairwise(course[1:]):
        if before.progress < progress < after.progress:
            part = (progress - before.progress) / (after.progress - before.progress)
            loss = _between(before.val_loss, after.val_loss, part)
            return loss, _between(before.emissions_kg, after.emissions_kg, part)
    return None
