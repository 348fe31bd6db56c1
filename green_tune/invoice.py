"""What a study cost, what that bought and what was saved, in sentences that hold.

Each sentence is made from RunRecords, and left out where they have no evidence for it. A saving
that is a forecast says so. It reads no store and writes no file; figures are `pictures`.
"""

import math
from collections.abc import Callable, Sequence

from green_tune.footprint import OVERHEAD
from green_tune.points import (
    FINISHED,
    RUNNING,
    Point,
    best,
    front_of,
    gained,
    greenest,
    intensities,
    is_assumed,
    knee,
    points,
)
from green_tune.results import RETRY_OF, REUSED, SAVED_KG, STOPPED_WHY, TRIAL, RunRecord
from green_tune.space import SPACE

KG_TO_G = 1000.0
LIMITS = ("emissions_budget_kg", "energy_budget_kwh", "timeout_h")  # how a budget's reason begins
ENOUGH = 0.95  # of the best loss's gain: a cheaper trial with as much is worth a sentence
WORTH = 0.8  # of the best loss's emissions, less than that, for the same sentence
MEASURED_KINDS = ("trial", "repeat")
LAST = 5  # trials that are compared with all before, of which there are at least as many
SMALLEST = 0.05  # %, what is less is written as such

Records = Sequence[RunRecord]


def invoice(records: Records, overheads: Records = (), *, study: str) -> list[str]:
    """The sentences, what was spent first; `overheads` are the study's own and workers' runs.

    Trials that were taken over from earlier runs cost nothing now, and are in no sum but their
    own. Grams are of CO2e; the first sentence says what intensity they rest on.
    """
    runs = [record for record in records if record.kind in MEASURED_KINDS]
    lines = (_spent(runs, overheads, study), *findings(records), _sweep_itself(runs, overheads))
    return [line for line in lines if line]


def findings(records: Records) -> list[str]:
    """What the trials bought and what was saved: the sentences between the sums."""
    trials = [record for record in records if record.kind == "trial"]
    made: Sequence[Callable[[Records], str]] = (
        _bought_cheaply,
        _bend,
        _on_the_way,
        _last_trials,
        _dominated,
        _out_of_budget,
        _taken_over,
        _cut_off,
        _unfinished,
    )
    return [line for make in made if (line := make(trials))]


def markdown(records: Records, overheads: Records = (), *, study: str) -> str:
    """The invoice as a page: the sentences, and the front as a table with what varied."""
    lines = [f"- {line}" for line in invoice(records, overheads, study=study)]
    front = front_of(points(records))
    table = _table(front, records) if front else ["No trial has finished."]
    blocks = ([f"# Study {study}: the invoice"], lines, ["## The front"], table)
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _spent(trials: Records, overheads: Records, study: str) -> str:
    paid = _emissions([record for record in trials if REUSED not in record.tags])
    if not paid:
        return ""
    kg = sum(paid) + sum(r.metrics.get(f"{OVERHEAD}emissions_kg", 0.0) for r in overheads)
    what = "assumed intensity" if is_assumed(trials) else "intensity"
    source = intensities(trials).replace("assumed: ", "")
    repeats = sum(record.kind == "repeat" for record in trials)
    more = f" and {repeats} repeats" if repeats else ""
    count = _trials(len(paid) - repeats)
    return f"study {study} spent {_mass(kg)} CO2e in {count}{more} ({what}: {source})"


def _bought_cheaply(trials: Records) -> str:
    """The cheapest point with nearly all of the gain: of the start's loss less a point's."""
    found = points(trials)
    top = best(found)
    if top is None or "start_val_loss" not in top.record.metrics:
        return ""
    start = top.record.metrics["start_val_loss"]
    most = start - top.val_loss
    cheap = greenest([point for point in found if start - point.val_loss >= ENOUGH * most])
    if most <= 0 or cheap is None or cheap.emissions_kg >= WORTH * top.emissions_kg:
        return ""
    gain = _floor(100 * (start - cheap.val_loss) / most)
    grams = _ceil(100 * cheap.emissions_kg / top.emissions_kg)
    whose = "its" if cheap.record.run_id == top.record.run_id else f"{_named(top)}'s"
    reached = f"reached {gain} % of the best loss's gain"
    return f"{_named(cheap)} {reached} at {grams} % of {whose} emissions"


def _bend(trials: Records) -> str:
    point = knee(points(trials))
    if point is None:
        return ""
    at = f"loss {point.val_loss:.4g} for {_mass(point.emissions_kg)}"
    return f"the front bends at {_named(point)}: {at}; beyond, a gram buys less"


def _on_the_way(trials: Records) -> str:
    course = gained(trials)
    if not course or not course[-1].hypervolume_ended:
        return ""
    more = course[-1].hypervolume / course[-1].hypervolume_ended - 1
    return (
        f"validations on the way add {_percent(more)} hypervolume to the ends" if more > 0 else ""
    )


def _last_trials(trials: Records) -> str:
    course = gained(trials)
    if len(course) < 2 * LAST or not course[-LAST - 1].hypervolume:
        return ""
    before, after = course[-LAST - 1], course[-1]
    more = after.hypervolume / before.hypervolume - 1
    spent = _mass(after.spent_kg - before.spent_kg)
    if after.spent_kg == before.spent_kg:
        return ""
    bought = f"{_percent(more)} more hypervolume" if more > 0 else "no more hypervolume"
    return f"the last {LAST} trials spent {spent} for {bought}"


def _dominated(trials: Records) -> str:
    stopped = [record for record in trials if _why(record).startswith("dominated")]
    forecasts = [kg for record in stopped if (kg := _number(record.tags.get(SAVED_KG))) > 0]
    saved = f"saved about {_mass(sum(forecasts))} (a forecast)"
    return f"stopping {_trials(len(forecasts), 'dominated ')} {saved}" if forecasts else ""


def _out_of_budget(trials: Records) -> str:
    stopped = [record for record in trials if _why(record).startswith(LIMITS)]
    return f"the budget stopped {_trials(len(stopped))} short of a full schedule" * bool(stopped)


def _why(record: RunRecord) -> str:
    return record.tags.get(STOPPED_WHY, "")


def _taken_over(trials: Records) -> str:
    then = _emissions([record for record in trials if REUSED in record.tags])
    if not then:
        return ""
    were = "was taken over from an earlier run"
    if len(then) > 1:
        were = "were taken over from earlier runs"
    saved = f"saved {_mass(sum(then))} (as measured then)"
    return f"{_trials(len(then))} {were}, which {saved}"


def _cut_off(trials: Records) -> str:
    cost = _emissions(_attempts(trials))
    were = "attempt was" if len(cost) == 1 else "attempts were"
    return f"{len(cost)} {were} cut off and cost {_mass(sum(cost))}" if cost else ""


def _unfinished(trials: Records) -> str:
    tried_again = {record.run_id for record in _attempts(trials)}
    over = [r for r in _not_finished(trials) if r.run_id not in tried_again]
    cost = _emissions(over)
    return f"{_trials(len(cost))} that did not finish cost {_mass(sum(cost))}" if cost else ""


def _attempts(trials: Records) -> list[RunRecord]:
    """Those that another trial has tried again."""
    again = {record.tags.get(RETRY_OF) for record in trials}
    return [record for record in _not_finished(trials) if record.run_id in again]


def _not_finished(trials: Records) -> list[RunRecord]:
    return [record for record in trials if record.status not in (FINISHED, RUNNING)]


def _emissions(records: Records) -> list[float]:
    """In kg, of those that have a figure."""
    return [r.metrics["emissions_kg"] for r in records if "emissions_kg" in r.metrics]


def _sweep_itself(trials: Records, overheads: Records) -> str:
    between = sum(r.metrics.get(f"{OVERHEAD}energy_kwh", 0.0) for r in overheads)
    within = sum(r.metrics.get("energy_kwh", 0.0) for r in trials if REUSED not in r.tags)
    if not between or not within:
        return ""
    share = between / (between + within)
    return f"the sweep itself (imports, loading, proposals) cost {_percent(share)} of its energy"


def _table(front: Sequence[Point], records: Records) -> list[str]:
    trials = [record for record in records if record.kind == "trial"]
    names = [n for n in SPACE if len({r.params[n] for r in trials if n in r.params}) > 1]
    grams = f"g CO2e{' (assumed intensity)' * is_assumed(trials)}"
    marks = ((best(front), "lowest loss"), (greenest(front), "lowest emissions"),
             (knee(front), "bend"))  # fmt: skip
    rows = [["trial", "steps", "val loss", grams, *names, ""], ["---"] * (5 + len(names))]
    for point in front:
        notes = [note for marked, note in marks if marked is point]
        rows.append(
            [
                point.record.tags.get(TRIAL, point.record.run_id[:8]),
                _at(point) or "all",
                f"{point.val_loss:.4f}",
                f"{point.emissions_kg * KG_TO_G:.3g}",
                *(_short(point.record.params.get(name, "")) for name in names),
                ", ".join(notes),
            ]
        )
    return [f"| {' | '.join(row)} |" for row in rows]


def _named(point: Point) -> str:
    trial = f"trial {point.record.tags.get(TRIAL, point.record.run_id[:8])}"
    return trial if point.ended else f"{trial} at {_at(point)} of its steps"


def _at(point: Point) -> str:
    return "" if point.ended else f"{100 * point.progress:.0f} %"


def _trials(count: int, which: str = "") -> str:
    return f"{count} {which}trial{'s' * (count != 1)}"


def _mass(kg: float) -> str:
    """Three digits, in grams below a kilogram."""
    grams = float(f"{kg * KG_TO_G:.3g}")
    return f"{grams:.3g} g" if grams < KG_TO_G else f"{kg:.3g} kg"


def _percent(share: float) -> str:
    percent = 100 * share
    if percent < SMALLEST:
        return "less than 0.1 %"
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.1f} %"  # noqa: PLR2004


def _floor(percent: float) -> int:
    """Never more than was reached; what floats lose on the way is given back."""
    return math.floor(percent + 1e-9)


def _ceil(percent: float) -> int:
    """Never less than it cost."""
    return math.ceil(percent - 1e-9)


def _number(text: str | None) -> float:
    try:
        number = float(text or 0.0)
    except ValueError:
        return 0.0
    return number if math.isfinite(number) else 0.0


def _short(text: str) -> str:
    try:
        return f"{float(text):.3g}"
    except ValueError:
        return text
