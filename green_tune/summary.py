"""What a sweep says: its trials as a table, what they found, what it cost, and how to go on.

It reads the records of one study and returns text; figures are `pictures`, sentences `invoice`.
"""

import textwrap
from collections.abc import Sequence

from green_tune import cells, invoice, points, repeats
from green_tune.report import (
    ENDED_BADLY,
    HYPERPARAMETERS,
    MARK,
    cost,
    footnotes,
    modelled,
    overhead_share,
    starred,
)
from green_tune.results import REUSED, STOPPED_WHY, TRIAL, RunRecord

ON_THE_WAY, CUT, TAKEN = "☆", "◁", "="
MARKS = {
    MARK: "on the Pareto front: nothing has both a lower loss and lower emissions",
    ON_THE_WAY: "an adapter on the way is on it; the run holds it under checkpoints/",
    CUT: "ended before its schedule; its run says why",
    TAKEN: "taken over from an earlier run of the very same config",
}


def on_front(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The trials with a point on the front: their end, or an adapter on the way."""
    there = {point.record.run_id for point in points.front_of(points.points(records))}
    return [record for record in records if record.run_id in there]


def trials_table(records: Sequence[RunRecord], width: int = 80) -> str:
    """A sweep's trials, one a line, those on the front marked."""
    table = cells.new_table(
        "#", "", "val loss", f"g CO2e{cells.star(records)}", "time", *HYPERPARAMETERS.values()
    )
    marks = _marks(records)
    for record in records:
        table.add_row(
            record.tags.get("green_tune.trial", ""),
            marks[record.run_id],
            cells.loss(record),
            cells.grams(record),
            cells.time(record),
            *(cells.short(record.params.get(name, "")) for name in HYPERPARAMETERS),
            style="bold" if MARK in marks[record.run_id] else "",
        )
    return cells.to_text(table, width)


def _marks(records: Sequence[RunRecord]) -> dict[str, str]:
    """By run: whether its end is on the front, and its adapters on the way; how it came to be."""
    marks: dict[str, str] = {record.run_id: "" for record in records}
    for record in records:
        if record.ended_early:
            marks[record.run_id] = CUT
        elif REUSED in record.tags:
            marks[record.run_id] = TAKEN
    every = points.points(records)
    ends = {point.record.run_id: point for point in every}  # the last of each
    for point in points.front_of(every):
        mark = MARK if point is ends[point.record.run_id] else ON_THE_WAY
        if mark not in marks[point.record.run_id]:
            marks[point.record.run_id] += mark
    return marks


def _legend(records: Sequence[RunRecord]) -> list[str]:
    """What the marks of a sweep's table mean, those that are in it."""
    there = "".join(_marks(records).values())
    return [f"{mark} {text}" for mark, text in MARKS.items() if mark in there]


def trial_line(record: RunRecord) -> str:
    """One finished trial in one line, for the time while the sweep goes on."""
    what = f"trial {record.tags['green_tune.trial']}"
    if record.kind == "repeat":
        what = f"{what} again, seed {record.params['seed']}"
    hyperparameters = " ".join(
        f"{short} {cells.short(record.params[name])}" for name, short in HYPERPARAMETERS.items()
    )
    line = (
        f"{what}: loss {cells.loss(record)}, "
        f"{cells.grams(record)} g{' assumed' * bool(cells.star([record]))}  {hyperparameters}"
    )
    if record.ended_early:
        why = f"{record.tags['stopped_early']}: {record.tags.get(STOPPED_WHY, '')}"
        line += f"\n  ended {why}"
    elif REUSED in record.tags:
        line += f"\n  taken over from run {record.tags[REUSED]}"
    return line


def sweep_summary(
    records: Sequence[RunRecord],
    study: str,
    missing: str = "",
    overheads: Sequence[RunRecord] = (),
    repeated: Sequence[RunRecord] = (),
    width: int = 80,
) -> str:
    """What a sweep found and what it cost, on one screen; `missing` says what it lacks, and why.

    `overheads` are the study's own runs, one for each time that it was started; `repeated` the
    best trials' on further seeds.
    """
    failed = sum(record.status in ENDED_BADLY for record in records)
    lines = [
        f"\nStudy {study}: {len(records)} trials, {failed} of them failed",
        *([missing] if missing else []),
        *([trials_table(records, width)] if records else []),
        *_legend(records),
        *footnotes(records),
        *([repeats_table(records, repeated, width)] if repeated else []),
        f"\nThe sweep's cost, failed trials and what lies between them included:\n"
        f"{cost([*records, *repeated], overheads)}\n"
        f"{overhead_share([*records, *repeated], overheads):.0%} of its energy "
        "was spent outside of trials\n",
        *_sentences(invoice.findings(records), width),
    ]
    return "\n".join(lines)


def _sentences(lines: Sequence[str], width: int) -> list[str]:
    return [
        textwrap.fill(line, width, initial_indent="- ", subsequent_indent="  ") for line in lines
    ]


def to_go_on(missing: int, study: str) -> str:
    """How to get the trials that a stopped sweep lacks; empty where it lacks none."""
    return f"Stopped {missing} trials before the end; go on with -P study={study}" * bool(missing)


def repeats_table(
    records: Sequence[RunRecord], repeated: Sequence[RunRecord], width: int = 80
) -> str:
    """The best trials over their seeds, with what chance alone may explain."""
    table = cells.new_table("#", "is", "seeds", "val loss", f"g CO2e{cells.star(records)}", gap=2)
    found = repeats.spreads(records, repeated)
    for spread in found:
        loss, grams = (
            f"{spread.mean(name) * factor:.4g} ± {spread.deviation(name) * factor:.2g}"
            for name, factor in (("val_loss", 1.0), ("emissions_kg", cells.KG_TO_G))
        )
        table.add_row(spread.trial, ", ".join(spread.roles), str(spread.seeds), loss, grams)
    ties = [
        f"#{one} and #{other} are equal in {what} within their spread (Welch's t-test at 5 %)"
        for one, other, what in repeats.ties(found)
    ]
    heading = "\nThe best on further seeds, mean ± standard deviation"
    return "\n".join([heading, cells.to_text(table, width), *ties])


def repeats_rows(
    records: Sequence[RunRecord], repeated: Sequence[RunRecord]
) -> list[dict[str, object]]:
    """The same as rows with full names and base units."""
    return [
        {
            "trial": spread.trial,
            "is": ", ".join(spread.roles),
            "seeds": spread.seeds,
            **{f"{name}_mean": spread.mean(name) for name in repeats.OBJECTIVES},
            **{f"{name}_sd": spread.deviation(name) for name in repeats.OBJECTIVES},
        }
        for spread in repeats.spreads(records, repeated)
    ]


def front_rows(records: Sequence[RunRecord]) -> list[dict[str, object]]:
    """The front's points as rows, the cheapest first, each with where its adapter is."""
    every = points.points(records)
    ends = {point.record.run_id: point for point in every}  # the last of each
    found = []
    for point in points.front_of(every):
        own = point is ends[point.record.run_id]
        run_id = point.record.tags.get(REUSED, point.record.run_id)
        place = "adapter" if own else f"checkpoints/step-{point.step}"
        found.append(
            {
                "trial": point.record.tags.get(TRIAL, ""),
                "val_loss": point.val_loss,
                "emissions_kg": point.emissions_kg,
                "progress": point.progress,
                "ended": point.ended,
                "adapter": f"runs:/{run_id}/{place}",
                **{name: point.record.params.get(name, "") for name in HYPERPARAMETERS},
                "step": point.step,
                "run_id": point.record.run_id,
            }
        )
    return found


def sweep_note(
    records: Sequence[RunRecord],
    overheads: Sequence[RunRecord] = (),
    repeated: Sequence[RunRecord] = (),
) -> str:
    """A sweep's outcome in Markdown: the front and the cost, for the run's page in MLflow."""
    failed = sum(record.status in ENDED_BADLY for record in records)
    return (
        f"{len(records)} trials, {failed} of them failed: "
        f"{cost([*records, *repeated], overheads)}. "
        f"{modelled(records)}.\n\n"
        + "".join(f"- {line}\n" for line in invoice.findings(records))
        + "\nThe Pareto front:\n\n"
        f"```\n{trials_table(on_front(records))}\n```\n\n" + "; ".join(starred(records))
    )
