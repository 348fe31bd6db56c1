"""What a study's trials have reached, point by point: fronts, hypervolumes, the bend of a front.

Each validation of a finished trial is a point beside the trial's end, since a training that ends
there would have had that loss for those emissions. Pure functions over RunRecords: what a point
looks like on paper is `pictures`, what it is worth in a sentence `invoice`.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from green_tune.results import (
    REUSED,
    STOPPED_EARLY,
    TRIAL,
    Evaluation,
    RunRecord,
    hypervolume,
)

FINISHED, RUNNING = "FINISHED", "RUNNING"
ASSUMED = "intensity_assumed"
MEASURED = {"val_loss", "emissions_kg"}
MARGIN = 1.05  # of the reference point, so that the worst trial still counts for something
REFERENCE = "5 % beyond the worst of the trials that ran to their end, and no loss above the start"
CORNERS = 3  # with fewer points a front has no inside, and cannot bend
_STOPPED_AT = re.compile(r"after step (\d+) of (\d+)")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A loss in nats per token, and the kg CO2e after which a trial had it.

    `progress` is the part of the planned steps that was done, 0 to 1. `ended` is true for the end
    of a trial that took all of them, whose emissions then include what came after the last step.
    """

    record: RunRecord
    val_loss: float
    emissions_kg: float
    progress: float
    step: int
    ended: bool

    @property
    def pair(self) -> tuple[float, float]:
        """Loss and kilograms, both to be minimised."""
        return self.val_loss, self.emissions_kg


@dataclass(frozen=True, kw_only=True)
class Gained:
    """What a study had spent and reached when one more of its trials was over.

    Hypervolumes in nats times kg: of all points, and of the trials' ends alone.
    """

    spent_kg: float
    hypervolume: float
    hypervolume_ended: float


def points(records: Sequence[RunRecord]) -> list[Point]:
    """Every validation of every finished trial, and its end, in the given order.

    A validation at the very end is not a point of its own: it is the end, and costs what the
    trial cost in total. What was there before the first step is nobody's result.
    """
    return every(record for record in records if record.kind == "trial")


def every(records: Iterable[RunRecord]) -> list[Point]:
    """The same of finished runs of any kind: where a point is from makes it no better or worse."""
    return [point for record in records if _is_finished(record) for point in _points(record)]


def _is_finished(record: RunRecord) -> bool:
    return record.status == FINISHED and record.metrics.keys() >= MEASURED


def _points(record: RunRecord) -> list[Point]:
    last = _end(record)
    before = [e for e in record.course if 0 < e.progress < 1 and e.step < last.step]
    on_the_way = [
        Point(
            record=record,
            val_loss=e.val_loss,
            emissions_kg=e.emissions_kg,
            progress=e.progress,
            step=e.step,
            ended=False,
        )
        for e in before
    ]
    return [*on_the_way, last]


def _end(record: RunRecord) -> Point:
    step, progress = _where(record)
    return Point(
        record=record,
        val_loss=record.metrics["val_loss"],
        emissions_kg=record.metrics["emissions_kg"],
        progress=progress,
        step=step,
        ended=not record.ended_early,
    )


def _where(record: RunRecord) -> tuple[int, float]:
    """At which step, and which part of its schedule, a trial ended."""
    if found := _STOPPED_AT.search(record.tags.get(STOPPED_EARLY, "")):
        return int(found[1]), int(found[1]) / int(found[2])
    never = Evaluation(step=0, progress=0.0, val_loss=math.nan, emissions_kg=math.nan)
    last = max(record.course, key=lambda e: e.step, default=never)
    if record.ended_early:
        return last.step, last.progress
    return int(record.metrics.get("steps", max(last.step, 1))), 1.0


def front_of(points: Iterable[Point]) -> list[Point]:
    """The points that no other dominates, the cheapest first; equals all stay."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.emissions_kg, p.val_loss)):
        if not kept or point.val_loss < kept[-1].val_loss or point.pair == kept[-1].pair:
            kept.append(point)
    return kept


def ended_front(records: Sequence[RunRecord]) -> list[Point]:
    """The front of those trials alone that ran to their end."""
    return front_of(point for point in points(records) if point.ended)


def best(points: Sequence[Point]) -> Point | None:
    """The lowest loss, the cheapest of equals; None where there are no points."""
    return min(points, key=lambda p: p.pair, default=None)


def greenest(points: Sequence[Point]) -> Point | None:
    """The lowest emissions, the lowest loss of equals; None where there are no points."""
    return min(points, key=lambda p: p.pair[::-1], default=None)


def knee(points: Iterable[Point]) -> Point | None:
    """Where a front bends most: behind it, each gram buys less than it did before.

    It is the point with the largest distance below the chord between the front's ends, on axes
    that both go from 0 to 1 over the front (the idea: Das, Structural Optimization 18, 1999).
    None for a front of fewer than three points, or one that bends outwards.
    """
    front = front_of(points)
    if len({point.pair for point in front}) < CORNERS:
        return None
    below = below_chord([point.pair for point in front])
    bend = max(front, key=lambda point: below(point.pair))
    return bend if below(bend.pair) > 0 else None


def below_chord(pairs: Sequence[tuple[float, float]]) -> Callable[[tuple[float, float]], float]:
    """How far a pair of loss and kg lies below the chord between the ends of the pairs' front.

    On axes that both go from 0 to 1 over the front; 0 at its ends, and everywhere where the front
    is a single pair.
    """
    (bottom, most), (top, least) = min(pairs), min(pairs, key=lambda pair: pair[::-1])
    if most == least or top == bottom:
        return lambda pair: 0.0
    return lambda pair: 1 - (pair[1] - least) / (most - least) - (pair[0] - bottom) / (top - bottom)


def reference(records: Sequence[RunRecord]) -> tuple[float, float] | None:
    """The loss and kg up to which hypervolumes count, as `REFERENCE` says it in words.

    It moves when a worse trial ends, so hypervolumes compare only within one set of records. None
    where no trial has run to its end.
    """
    ended = [point for point in points(records) if point.ended]
    if not ended:
        return None
    loss = MARGIN * max(point.val_loss for point in ended)
    starts = [p.record.metrics["start_val_loss"] for p in ended if _has_start(p.record)]
    return min([loss, *starts]), MARGIN * max(point.emissions_kg for point in ended)


def _has_start(record: RunRecord) -> bool:
    return "start_val_loss" in record.metrics


def spent_kg(record: RunRecord) -> float:
    """What a run has cost this study: nothing where an earlier run's measurement was taken over."""
    return 0.0 if REUSED in record.tags else record.metrics.get("emissions_kg", 0.0)


def gained(records: Sequence[RunRecord]) -> list[Gained]:
    """What was spent and reached after each trial that is over, in the order of their starts.

    Failed ones spend and reach nothing, those taken over reach and spend nothing. What lies
    between the trials is not in it. Empty where there is no reference.
    """
    limit = reference(records)
    if limit is None:
        return []
    spent, every, ended, course = 0.0, list[Point](), list[Point](), []
    for record in by_start(records):
        new = points([record])
        spent += spent_kg(record)
        every = front_of([*every, *new])
        ended = front_of([*ended, *(point for point in new if point.ended)])
        volumes = [hypervolume((p.pair for p in front), limit) for front in (every, ended)]
        course.append(Gained(spent_kg=spent, hypervolume=volumes[0], hypervolume_ended=volumes[1]))
    return course


def by_start(records: Iterable[RunRecord]) -> list[RunRecord]:
    """The trials that are over, the first that was started first."""
    over = [r for r in records if r.kind == "trial" and r.status != RUNNING]
    return sorted(over, key=lambda record: record.started)


def name(record: RunRecord) -> str:
    """#4 for a trial; the start of its id for any other run."""
    number = record.tags.get(TRIAL)
    return f"#{number}" if number else record.run_id[:8]


def label(point: Point) -> str:
    """#4, or #4 at 50 % where that was not the end of its schedule."""
    return name(point.record) + ("" if point.ended else f" at {100 * point.progress:.0f} %")


def is_assumed(records: Sequence[RunRecord]) -> bool:
    """True where the carbon intensity behind some figure was assumed."""
    return any(record.tags.get(ASSUMED) == "true" for record in records)


def intensities(records: Sequence[RunRecord]) -> str:
    """The carbon intensities behind the figures, and whether they were assumed."""
    found: dict[tuple[str, str], set[float]] = defaultdict(set)
    for record in records:
        if "intensity_zone" in record.tags:
            assumed = "assumed: " * (record.tags.get(ASSUMED) == "true")
            pue = float(record.tags.get("pue", 1.0))
            zone, more = record.tags["intensity_zone"], f" x PUE {pue:g}" * (pue != 1.0)
            found[assumed + zone, more].add(float(record.tags["intensity_g_per_kwh"]))
    notes = [f"{zone} at {_range(g)} g/kWh{more}" for (zone, more), g in sorted(found.items())]
    return "; ".join(notes) or "no intensity"


def _range(numbers: set[float]) -> str:
    ends = dict.fromkeys(f"{number:g}" for number in (min(numbers), max(numbers)))
    return " to ".join(ends)
