"""What the runs say: tables for a terminal, CSV and JSON for programs, and the front as a plot.

It reads RunRecords and returns text and figures; it prints nothing and stores nothing. Wherever
a kilogram or a gram is shown, it says whether the intensity behind it was assumed.
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from green_tune.footprint import OVERHEAD, PHASES
from green_tune.results import RunRecord, front

MARK = "★"
KG_TO_G = 1000.0
MINUTE_S, HOUR_S = 60, 3600
WIDE = 120  # columns
SHOWN = 5  # runs that a footnote names
MEASURED = {"val_loss", "emissions_kg"}
ENDED_BADLY = ("FAILED", "KILLED")
LOSSES = ("val_loss", "val_bits_per_byte")
QUALITY = {
    "exact_match": "exact match",
    "accuracy": "accuracy",
    "f1": "F1",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}
HYPERPARAMETERS = {
    "batch_size": "batch",
    "accumulation_steps": "acc",
    "learning_rate": "lr",
    "warmup_steps": "warm",
    "epochs": "ep",
    "lora_rank": "rank",
}
FIGURES = (
    "val_loss",
    "val_bits_per_byte",
    "emissions_kg",
    "emissions_rate_kg_per_h",
    "runtime_h",
    "energy_kwh",
    "energy_cpu_kwh",
    "energy_gpu_kwh",
    "energy_ram_kwh",
    "energy_modelled_share",
    "energy_low_kwh",
    "energy_high_kwh",
    "emissions_low_kg",
    "emissions_high_kg",
)
TAGS = (
    *("device", "data_digest", "intensity_g_per_kwh", "intensity_zone", "intensity_source"),
    *("intensity_year", "intensity_assumed", "pue", "energy_valid", "energy_flags"),
)
COLUMNS = (  # what a reader wants first stands first: the MLflow UI shows six
    *("trial", "front", *FIGURES[:1], "emissions_kg", "runtime_h", "energy_kwh"),
    *HYPERPARAMETERS,
    *("status", "model", "task", "gpu_type", "study", "kind", "run_id", "run_name", "started"),
    *(name for name in FIGURES[1:] if name not in ("emissions_kg", "runtime_h", "energy_kwh")),
    *TAGS,
)


def fronts(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The finished runs that no comparable run beats in both loss and emissions.

    Runs are comparable on the same task and data. Among runs of one base model the loss is
    `val_loss`; across models it is bits per byte, since tokenizers differ.
    """
    groups: dict[tuple[str, ...], list[RunRecord]] = defaultdict(list)
    for record in records:
        if record.status == "FINISHED" and record.metrics.keys() >= MEASURED:
            groups[_comparable(record)].append(record)
    return [record for group in groups.values() for record in _front(group)]


def trials_table(records: Sequence[RunRecord], width: int = 80) -> str:
    """A sweep's trials, one a line, those on the front marked."""
    table = _table(
        "#", "", "val loss", f"g CO2e{_star(records)}", "time", *HYPERPARAMETERS.values()
    )
    on_front = {record.run_id for record in fronts(records)}
    for record in records:
        table.add_row(
            record.tags.get("green_tune.trial", ""),
            MARK if record.run_id in on_front else "",
            _loss(record),
            _grams(record),
            _time(record),
            *(_short(record.params.get(name, "")) for name in HYPERPARAMETERS),
            style="bold" if record.run_id in on_front else "",
        )
    return _text(table, width)


def runs_table(records: Sequence[RunRecord], width: int = 80) -> str:
    """Runs of any origin, one a line, those on the front of their task and data marked.

    Where there is room, their hyperparameters follow.
    """
    wide = width >= WIDE
    extra = HYPERPARAMETERS if wide else {}
    several = len({record.tags.get("base_model") for record in records}) > 1
    headings = ["", "run", "model", "task", "gpu", "val loss"]
    headings += ["bits/B"] if several or wide else []
    headings += [f"g CO2e{_star(records)}"]
    headings += [f"g/h{_star(records)}"] if wide or not several else []
    table = _table(*headings, "time", *extra.values(), gap=1 if wide else 0)
    on_front = {record.run_id for record in fronts(records)}
    for record in records:
        cells = {
            "": MARK if record.run_id in on_front else "",
            "run": record.run_id[:8],
            "model": _cropped(record.tags.get("base_model", ""), 40 if wide else 12),
            "task": record.params.get("task", ""),
            "gpu": record.tags.get("gpu_type", ""),
            "val loss": _loss(record),
            "bits/B": _figure(record, "val_bits_per_byte"),
            f"g CO2e{_star(records)}": _grams(record),
            f"g/h{_star(records)}": _figure(record, "emissions_rate_kg_per_h", KG_TO_G),
        }
        table.add_row(
            *(cells[heading] for heading in headings),
            _time(record),
            *(_short(record.params.get(name, "")) for name in extra),
            style="bold" if record.run_id in on_front else "",
        )
    return _text(table, width)


def rows(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """The runs as flat rows with full names and base units, for CSV, JSON and artifacts."""
    on_front = {record.run_id for record in fronts(records)}
    return [_row(record, record.run_id in on_front) for record in records]


def to_csv(records: Sequence[RunRecord]) -> str:
    """The rows as CSV with a header line; missing figures are empty."""
    text = io.StringIO()
    lines = rows(records)
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def to_json(records: Sequence[RunRecord]) -> str:
    """The rows as a JSON array; missing figures are null."""
    return json.dumps(rows(records), indent=2)


def run_summary(record: RunRecord) -> str:
    """One finished run on one small screen."""
    figures, tags = record.metrics, record.tags
    name = f"{tags['base_model']} · {record.params['task']} · {tags['gpu_type']}"
    loss = f"{figures['start_val_loss']:.4g} → {figures['val_loss']:.4g} nats per token"
    rate = f"{figures['emissions_rate_kg_per_h']:.3g} kg/h"
    spent = totals([record])
    lines = (
        ("run", name),
        ("", tags["device"]),
        *(("plan", line) for line in [plan(record)] if line),
        ("val loss", loss),
        ("", f"{figures['val_bits_per_byte']:.4g} bits per byte"),
        *(("quality", line) for line in [quality(record)] if line),
        ("cost", f"{spent['emissions_kg']:.3g} kg CO2e ({intensities([record])})"),
        ("", f"{spent['energy_kwh']:.3g} kWh in {duration(spent['runtime_h'])}, {rate}"),
        ("", phases(record)),
        ("", modelled([record])),
        *(("", line) for line in [bounds(record)] if line),
        *(("note", flag) for flag in tags.get("energy_flags", "").split("; ") if flag),
        ("adapter", f"runs:/{record.run_id}/adapter"),
    )
    return "\n" + "\n".join(f"{label:9} {text}" for label, text in lines) + "\n"


def plan(record: RunRecord) -> str:
    """How it was computed, and what of it was computed twice or for nothing; may be empty."""
    params, figures = record.params, record.metrics
    if not (figures.get("processed_tokens") and figures.get("train_tokens")):
        return ""
    bits = "" if params["plan.quantization"] == "none" else f" on {params['plan.quantization']}"
    ratio = figures["processed_tokens"] / figures["train_tokens"]
    early = record.tags.get("stopped_early", "")
    return (
        f"{params['plan.precision']}{bits}, {params['plan.batching']}: {ratio:.0%} of the tokens "
        f"computed{f'; stopped {early}' if early else ''}"
    )


def quality(record: RunRecord) -> str:
    """The task's metrics before and after the training, and on how many examples; may be empty."""
    figures = record.metrics
    changes = [
        f"{name} {_share(figures, f'start_quality.{key}')} → {_share(figures, f'quality.{key}')}"
        for key, name in QUALITY.items()
        if f"quality.{key}" in figures
    ]
    return f"{', '.join(changes)} (n={figures['quality.examples']:.0f})" if changes else ""


def _share(figures: Mapping[str, float], name: str) -> str:
    return f"{figures[name]:.2f}" if name in figures else "?"


def phases(record: RunRecord) -> str:
    """Where the energy of a run went: train 71 %, eval 20 %, setup 8 %, ..."""
    total = record.metrics["energy_kwh"]
    spent = {name: record.metrics.get(f"{name}/energy_kwh", 0.0) for name in PHASES}
    shares = sorted(((kwh / total, name) for name, kwh in spent.items() if kwh), reverse=True)
    return ", ".join(f"{name} {share:.0%}" for share, name in shares)


def bounds(record: RunRecord) -> str:
    """Between what and what the machine really drew; empty where it is not known."""
    low, high = (record.metrics.get(f"energy_{end}_kwh") for end in ("low", "high"))
    return f"at the wall an estimated {low:.2g} to {high:.2g} kWh" if low and high else ""


def trial_line(record: RunRecord) -> str:
    """One finished trial in one line, for the time while the sweep goes on."""
    hyperparameters = " ".join(
        f"{short} {_short(record.params[name])}" for name, short in HYPERPARAMETERS.items()
    )
    return (
        f"trial {record.tags['green_tune.trial']}: loss {_loss(record)}, "
        f"{_grams(record)} g{' assumed' * bool(_star([record]))}  {hyperparameters}"
    )


def sweep_summary(
    records: Sequence[RunRecord],
    study: str,
    missing: int,
    overheads: Sequence[RunRecord] = (),
    width: int = 80,
) -> str:
    """What a sweep found and what it cost, on one screen, and how to go on where it was stopped.

    `overheads` are the study's own runs, one for each time that it was started.
    """
    failed = sum(record.status in ENDED_BADLY for record in records)
    resume = [f"Stopped {missing} trials before the end; go on with -P study={study}"]
    lines = [
        f"\nStudy {study}: {len(records)} trials, {failed} of them failed",
        *(resume if missing else []),
        trials_table(records, width),
        f"{MARK} on the Pareto front: no trial has both a lower loss and lower emissions",
        *_footnotes(records),
        f"\nThe sweep's cost, failed trials and what lies between them included:\n"
        f"{cost(records, overheads)}\n{overhead_share(records, overheads):.0%} of its energy "
        "was spent outside of trials\n",
    ]
    return "\n".join(lines)


def sweep_note(records: Sequence[RunRecord], overheads: Sequence[RunRecord] = ()) -> str:
    """A sweep's outcome in Markdown: the front and the cost, for the run's page in MLflow."""
    failed = sum(record.status in ENDED_BADLY for record in records)
    return (
        f"{len(records)} trials, {failed} of them failed: {cost(records, overheads)}. "
        f"{modelled(records)}. The Pareto front:\n\n"
        f"```\n{trials_table(fronts(records))}\n```\n\n" + "; ".join(_starred(records))
    )


def comparison(records: Sequence[RunRecord], width: int = 80) -> str:
    """Runs of any origin, with what the marks mean."""
    if not records:
        return "no runs match"
    lines = [
        runs_table(records, width),
        f"{MARK} on the Pareto front of its task and data (loss, or bits per byte across models)",
        *_footnotes(records),
        f"{len(records)} runs: {cost(records)}",
    ]
    return "\n".join(lines)


def _footnotes(records: Sequence[RunRecord]) -> list[str]:
    return [line for line in (*_starred(records), modelled(records), _flagged(records)) if line]


def _flagged(records: Sequence[RunRecord]) -> str:
    """Which runs' figures need a second look, and where it is written why."""
    flagged = [_name(record) for record in records if record.tags.get("energy_flags")]
    named = ", ".join(flagged[:SHOWN]) + ", ..." * (len(flagged) > SHOWN)
    return f"flagged, such as paused or shared, see their energy_flags: {named}" if flagged else ""


def _starred(records: Sequence[RunRecord]) -> list[str]:
    """What the asterisk stands for, where there is one."""
    return [f"* {intensities(records)}"] if _star(records) else []


def totals(records: Sequence[RunRecord], overheads: Sequence[RunRecord] = ()) -> dict[str, float]:
    """What the runs cost together, failed ones and a sweep's overheads included."""
    names = ("energy_kwh", "emissions_kg", "runtime_h")
    trials = {name: sum(record.metrics.get(name, 0.0) for record in records) for name in names}
    between = {name: sum(r.metrics.get(OVERHEAD + name, 0.0) for r in overheads) for name in names}
    failed = sum(record.status in ENDED_BADLY for record in records)
    spent = {name: trials[name] + between[name] for name in names}
    return spent | {"trials": float(len(records)), "trials_failed": float(failed)}


def overhead_share(records: Sequence[RunRecord], overheads: Sequence[RunRecord]) -> float:
    """The part of a sweep's energy, 0 to 1, that no trial has spent."""
    total = totals(records, overheads)["energy_kwh"]
    return 1 - totals(records)["energy_kwh"] / total if total else 0.0


def cost(records: Sequence[RunRecord], overheads: Sequence[RunRecord] = ()) -> str:
    """The totals in one line, with where the carbon intensity is from."""
    spent = totals(records, overheads)
    measured = [record for record in records if "energy_kwh" in record.metrics]
    without = sum("emissions_kg" not in record.metrics for record in measured)
    but = f", without {without} runs that have no figure" if without else ""
    kg = f"{spent['emissions_kg']:.3g} kg CO2e ({intensities(records)}{but})"
    if without and without == len(measured):
        kg = "kg CO2e unknown"
    return f"{spent['energy_kwh']:.3g} kWh, {kg}, {spent['runtime_h']:.3g} h"


def intensities(records: Sequence[RunRecord]) -> str:
    """The carbon intensities behind the figures, and whether they were assumed."""
    found: dict[tuple[str, str], set[float]] = defaultdict(set)
    for record in records:
        if "intensity_zone" in record.tags:
            assumed = "assumed: " * (record.tags.get("intensity_assumed") == "true")
            pue = float(record.tags.get("pue", 1.0))
            zone, more = record.tags["intensity_zone"], f" x PUE {pue:g}" * (pue != 1.0)
            found[assumed + zone, more].add(float(record.tags["intensity_g_per_kwh"]))
    notes = [f"{zone} at {_range(g)} g/kWh{more}" for (zone, more), g in sorted(found.items())]
    return "; ".join(notes) or "no intensity"


def _range(numbers: set[float]) -> str:
    ends = dict.fromkeys(f"{number:g}" for number in (min(numbers), max(numbers)))
    return " to ".join(ends)


def modelled(records: Sequence[RunRecord]) -> str:
    """How much of the energy no sensor has seen."""
    total = sum(record.metrics.get("energy_kwh", 0.0) for record in records)
    share = sum(
        record.metrics.get("energy_kwh", 0.0) * record.metrics.get("energy_modelled_share", 0.0)
        for record in records
    )
    return f"{share / total:.0%} of this energy is a model" if total else ""


def duration(hours: float) -> str:
    """A time in the unit that a reader would choose: 1.4 s, 12 min, 3.5 h."""
    seconds = hours * HOUR_S
    if seconds < MINUTE_S:
        return f"{seconds:.1f} s"
    return f"{seconds / MINUTE_S:.1f} min" if seconds < HOUR_S else f"{hours:.2f} h"


def front_figure(records: Sequence[RunRecord], title: str) -> Figure:
    """Validation loss against emissions of every finished run, the front joined by a line."""
    done = [r for r in records if r.status == "FINISHED" and r.metrics.keys() >= MEASURED]
    best = sorted(fronts(done), key=lambda record: record.metrics["emissions_kg"])
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(*_points(done), color="0.65", label="trials")
    # A step, not a slope: between two trials nothing was shown to be possible.
    axes.plot(*_points(best), "o-", drawstyle="steps-post", color="tab:green", label="Pareto front")
    for record in best:
        x, y = record.metrics["emissions_kg"] * KG_TO_G, record.metrics["val_loss"]
        axes.annotate(_name(record), (x, y), textcoords="offset points", xytext=(6, 5), fontsize=8)
    axes.set_xlabel(f"emissions (g CO2e; {intensities(records)})")
    axes.set_ylabel("validation loss (nats per completion token)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _comparable(record: RunRecord) -> tuple[str, ...]:
    return (record.params.get("task", ""), record.tags.get("data_digest", ""))


def _front(group: Sequence[RunRecord]) -> list[RunRecord]:
    one_model = len({record.tags.get("base_model") for record in group}) == 1
    loss = "val_loss" if one_model else "val_bits_per_byte"
    group = [record for record in group if loss in record.metrics]
    return front(group, lambda record: (record.metrics[loss], record.metrics["emissions_kg"]))


def _points(records: Sequence[RunRecord]) -> tuple[list[float], list[float]]:
    grams = [record.metrics["emissions_kg"] * KG_TO_G for record in records]
    return grams, [record.metrics["val_loss"] for record in records]


def _name(record: RunRecord) -> str:
    number = record.tags.get("green_tune.trial")
    return f"#{number}" if number else record.run_id[:8]


def _row(record: RunRecord, on_front: bool) -> dict[str, Any]:
    tags = record.tags
    known = {
        "trial": tags.get("green_tune.trial", ""),
        "front": on_front,
        "status": record.status,
        "model": tags.get("base_model", ""),
        "task": record.params.get("task", ""),
        "gpu_type": tags.get("gpu_type", ""),
        "study": tags.get("green_tune.study", ""),
        "kind": record.kind,
        "run_id": record.run_id,
        "run_name": record.name,
        "started": record.started.isoformat(timespec="seconds"),
        **{name: record.metrics.get(name) for name in FIGURES},
        **({} if record.status == "FINISHED" else dict.fromkeys(LOSSES)),  # no results of theirs
        **{name: tags.get(name, "") for name in TAGS},
        **{name: record.params.get(name, "") for name in HYPERPARAMETERS},
    }
    return {name: known[name] for name in COLUMNS}


def _table(*headings: str, gap: int = 1) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0), show_edge=False)
    for heading in headings:
        texts = ("", "run", "model", "task", "gpu")
        table.add_column(heading, justify="left" if heading in texts else "right", no_wrap=True)
    return table


def _text(table: Table, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _star(records: Sequence[RunRecord]) -> str:
    """An asterisk where some intensity was assumed; the line below the table explains it."""
    return "*" if any(r.tags.get("intensity_assumed") == "true" for r in records) else ""


def _loss(record: RunRecord) -> str:
    if record.status == "FINISHED":
        loss = record.metrics.get("val_loss")
        return "" if loss is None else f"{loss:.4f}"
    return record.status.lower()


def _grams(record: RunRecord) -> str:
    return _figure(record, "emissions_kg", KG_TO_G)


def _time(record: RunRecord) -> str:
    hours = record.metrics.get("runtime_h")
    return "" if hours is None else duration(hours)


def _figure(record: RunRecord, name: str, factor: float = 1.0) -> str:
    value = record.metrics.get(name)
    return "" if value is None else f"{value * factor:.3g}"


def _cropped(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _short(text: str) -> str:
    """A number in as few characters as say it: 0.00123456 as 1.2e-03."""
    try:
        number = float(text)
    except ValueError:
        return text
    return f"{number:.1e}" if number and abs(number) < 0.01 else f"{number:g}"  # noqa: PLR2004
