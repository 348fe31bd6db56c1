"""What runs of any origin say: tables for a terminal, CSV and JSON for programs.

It reads RunRecords and returns text; it prints nothing and stores nothing. Wherever
a kilogram or a gram is shown, it says whether the intensity behind it was assumed.
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from green_tune import cells, outcomes
from green_tune.cells import KG_TO_G, duration
from green_tune.footprint import OVERHEAD, PHASES
from green_tune.points import intensities
from green_tune.results import REUSED, RunRecord, front

MARK = "★"
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
    "train_tokens",
    "base_parameters",
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


def runs_table(records: Sequence[RunRecord], width: int = 80) -> str:
    """Runs of any origin, one a line, those on the front of their task and data marked.

    Where there is room, their hyperparameters follow.
    """
    wide = width >= WIDE
    extra = HYPERPARAMETERS if wide else {}
    several = len({record.tags.get("base_model") for record in records}) > 1
    headings = ["", "run", "model", "task", "gpu", "val loss"]
    headings += ["bits/B"] if several or wide else []
    star = cells.star(records)
    headings += [f"g CO2e{star}"]
    headings += [f"g/h{star}"] if wide or not several else []
    table = cells.new_table(*headings, "time", *extra.values(), gap=1 if wide else 0)
    on_front = {record.run_id for record in fronts(records)}
    for record in records:
        row = {
            "": MARK if record.run_id in on_front else "",
            "run": record.run_id[:8],
            "model": cells.cropped(record.tags.get("base_model", ""), 40 if wide else 12),
            "task": record.params.get("task", ""),
            "gpu": record.tags.get("gpu_type", ""),
            "val loss": cells.loss(record),
            "bits/B": cells.figure(record, "val_bits_per_byte"),
            f"g CO2e{star}": cells.grams(record),
            f"g/h{star}": cells.figure(record, "emissions_rate_kg_per_h", KG_TO_G),
        }
        table.add_row(
            *(row[heading] for heading in headings),
            cells.time(record),
            *(cells.short(record.params.get(name, "")) for name in extra),
            style="bold" if record.run_id in on_front else "",
        )
    return cells.to_text(table, width)


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
        *zip(("quoted", ""), quoted(record), strict=False),
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


def quoted(record: RunRecord) -> list[str]:
    """What it was expected to emit, by what, and how far off that was; empty without a quote."""
    figures = record.metrics
    said, low, high = (figures.get(f"quote.emissions_{name}kg") for name in ("", "low_", "high_"))
    if said is None or low is None or high is None:
        return []
    error = figures.get("quote.energy_error")
    came = "" if error is None else f": {abs(error):.0%} {'more' if error > 0 else 'less'} came"
    known = record.tags.get("quote.note", "").rpartition("; ")[2]
    return [
        f"{said:.3g} kg CO2e ({low:.3g} to {high:.3g}{', ' + known if known else ''})",
        f"by {outcomes.spoken(record)}{came}",
    ]


def bounds(record: RunRecord) -> str:
    """Between what and what the machine really drew; empty where it is not known."""
    low, high = (record.metrics.get(f"energy_{end}_kwh") for end in ("low", "high"))
    return f"at the wall an estimated {low:.2g} to {high:.2g} kWh" if low and high else ""


def comparison(records: Sequence[RunRecord], width: int = 80) -> str:
    """Runs of any origin, with what the marks mean."""
    if not records:
        return "no runs match"
    lines = [
        runs_table(records, width),
        f"{MARK} on the Pareto front of its task and data (loss, or bits per byte across models)",
        *footnotes(records),
        f"{len(records)} runs: {cost(records)}",
    ]
    return "\n".join(lines)


def footnotes(records: Sequence[RunRecord]) -> list[str]:
    """What a reader of a table must know about its figures."""
    return [line for line in (*starred(records), modelled(records), _flagged(records)) if line]


def _flagged(records: Sequence[RunRecord]) -> str:
    """Which runs' figures need a second look, and where it is written why."""
    flagged = [_name(record) for record in records if record.tags.get("energy_flags")]
    named = ", ".join(flagged[:SHOWN]) + ", ..." * (len(flagged) > SHOWN)
    return f"flagged, such as paused or shared, see their energy_flags: {named}" if flagged else ""


def starred(records: Sequence[RunRecord]) -> list[str]:
    """What the asterisk stands for, where there is one."""
    return [f"* {intensities(records)}"] if cells.star(records) else []


def totals(records: Sequence[RunRecord], overheads: Sequence[RunRecord] = ()) -> dict[str, float]:
    """What the runs cost together, failed ones and a sweep's overheads included."""
    names = ("energy_kwh", "emissions_kg", "runtime_h")
    paid = [record for record in records if REUSED not in record.tags]
    trials = {name: sum(record.metrics.get(name, 0.0) for record in paid) for name in names}
    between = {name: sum(r.metrics.get(OVERHEAD + name, 0.0) for r in overheads) for name in names}
    spent = {name: trials[name] + between[name] for name in names}
    mine = [record for record in records if record.kind == "trial"]
    failed = sum(record.status in ENDED_BADLY for record in mine)
    return spent | {"trials": float(len(mine)), "trials_failed": float(failed)}


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
    of = f" ({intensities(records)}{but})" * bool(measured)
    kg = f"{spent['emissions_kg']:.3g} kg CO2e{of}"
    if without and without == len(measured):
        kg = "kg CO2e unknown"
    return f"{spent['energy_kwh']:.3g} kWh, {kg}, {spent['runtime_h']:.3g} h"


def modelled(records: Sequence[RunRecord]) -> str:
    """How much of the energy no sensor has seen."""
    total = sum(record.metrics.get("energy_kwh", 0.0) for record in records)
    share = sum(
        record.metrics.get("energy_kwh", 0.0) * record.metrics.get("energy_modelled_share", 0.0)
        for record in records
    )
    return f"{share / total:.0%} of this energy is a model" if total else ""


def _comparable(record: RunRecord) -> tuple[str, ...]:
    return (record.params.get("task", ""), record.tags.get("data_digest", ""))


def _front(group: Sequence[RunRecord]) -> list[RunRecord]:
    one_model = len({record.tags.get("base_model") for record in group}) == 1
    loss = "val_loss" if one_model else "val_bits_per_byte"
    group = [record for record in group if loss in record.metrics]
    return front(group, lambda record: (record.metrics[loss], record.metrics["emissions_kg"]))


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
