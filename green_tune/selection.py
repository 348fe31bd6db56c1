"""From what a store holds to what may be compared: results alone, and reckoned alike.

Left out is what has no result or no trusted energy, and it is counted. Kilograms are put at one
carbon intensity, and figures of runs that measured more than others are cut to what all did; each
such change is said. Pure functions over records; which runs were asked for is `query`.
"""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from green_tune import blocks, intensity, recompute
from green_tune.footprint import GRAMS_PER_KG
from green_tune.foreign import FOREIGN, FOUND, mapped
from green_tune.intensity import Intensity
from green_tune.query import KINDS, SHOWN
from green_tune.recompute import RATE
from green_tune.results import EVALUATIONS, REUSED, UNFIT, RunRecord, to_tag
from green_tune.trace import Trace

ENDED = {
    "FAILED": "failed",
    "KILLED": "stopped",
    "RUNNING": "still running",
    "SCHEDULED": "not yet started",
}
OTHERS = "another tool's, without energy"
UNTIMED = "another tool's, without the hours of its energy"
REPEATED = "taken over from a run that is here"
OWN = ("train", "eval", "save")  # phases that a config decides, and every run of ours has
SETUP_SHARED = ("cell", "trial", "repeat")  # kinds whose base model and data are loaded once
FIGURES = ("energy_kwh", "energy_gpu_kwh", "energy_cpu_kwh", "energy_ram_kwh", "runtime_h",
           "emissions_kg")  # fmt: skip
BOUNDS = ("energy_low_kwh", "energy_high_kwh", "emissions_low_kg", "emissions_high_kg")
MOST = {"val_loss": 1e6, "energy_kwh": 1e12, "emissions_kg": 1e12, "runtime_h": 1e9}
NAMED = 5  # runs that a note names


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Runs that may be compared, those that may not, and what a reader must know.

    `records` are finished, measured and trusted; their kilograms are at one intensity, and their
    figures of one extent. `left_out` holds the others by why.
    """

    records: Sequence[RunRecord]
    unfit: Sequence[RunRecord]  # cells of a grid that have no room on their GPU
    left_out: Mapping[str, Sequence[RunRecord]]
    notes: Sequence[str]


def select(found: Sequence[RunRecord], given: Intensity | Trace | None = None) -> Selection:
    """What of the found runs may be compared.

    `given` is what kilograms are to be reckoned with. Where a trace is given, records are taken as
    `recompute.with_trace` left them; with neither, the most common intensity of the runs is taken.
    """
    results = [mapped(legible(r)) for r in found if r.kind in ("", FOREIGN, *KINDS)]
    unfit = [record for record in results if UNFIT in record.tags]
    left_out: dict[str, list[RunRecord]] = defaultdict(list)
    kept = []
    for record in results:
        if UNFIT in record.tags:
            continue
        if why := _unusable(record, given):
            left_out[why].append(record)
        else:
            kept.append(record)
    kept, left_out[REPEATED] = _originals(kept)
    same, of_intensity = _at_one_intensity(kept, given)
    records, of_extent = _of_one_extent(same)
    return Selection(
        records=records,
        unfit=unfit,
        left_out={why: runs for why, runs in left_out.items() if runs},
        notes=[*of_intensity, *of_extent, *_notes(records)],
    )


def legible(record: RunRecord) -> RunRecord:
    """The record without figures that are no finite number, and tags that do not hold what ours do.

    Anybody may write to a store: one NaN would be the mean of all, and a text is no intensity.
    """
    metrics = {name: value for name, value in record.metrics.items() if math.isfinite(value)}
    bad = {EVALUATIONS} if EVALUATIONS in record.tags and not _has_course(record) else set()
    if not _has_factor(record):
        bad |= {name for name in record.tags if name == "pue" or name.startswith("intensity_")}
    if not bad and len(metrics) == len(record.metrics):
        return record
    tags = {name: text for name, text in record.tags.items() if name not in bad}
    return replace(record, metrics=metrics, tags=tags)


def _has_course(record: RunRecord) -> bool:
    try:
        return all(
            math.isfinite(e.step + e.progress + e.val_loss + e.emissions_kg) for e in record.course
        )
    except (TypeError, ValueError):
        return False


def _has_factor(record: RunRecord) -> bool:
    try:
        g_per_kwh = float(record.tags["intensity_g_per_kwh"])
        pue = float(record.tags.get("pue", "1"))
    except (KeyError, ValueError):
        return False
    return math.isfinite(g_per_kwh) and math.isfinite(pue) and g_per_kwh >= 0 and pue > 0


def _unusable(record: RunRecord, given: Intensity | Trace | None) -> str:
    """Why a run is no result; empty where it is one."""
    foreign, energy = record.kind == FOREIGN, _is_spent(record, "energy_kwh")
    reasons = (
        (foreign and not energy, OTHERS),
        (foreign and isinstance(given, Trace), UNTIMED),
        (record.status != "FINISHED", ENDED.get(record.status, record.status.lower())),
        (record.tags.get("energy_valid") == "false", "energy not trusted"),
        (not energy, "no energy"),
        (not foreign and not _is_spent(record, "emissions_kg"), "no emissions"),
        (not math.isfinite(record.metrics.get("val_loss", math.nan)), "no validation loss"),
        (_is_absurd(record), "figures that cannot be true"),
    )
    return next((why for is_so, why in reasons if is_so), "")


def _is_absurd(record: RunRecord) -> bool:
    """Beyond all that was ever trained: such figures would break every mean."""
    return any(abs(record.metrics.get(name, 0.0)) > most for name, most in MOST.items())


def _is_spent(record: RunRecord, name: str) -> bool:
    value = record.metrics.get(name, 0.0)
    return math.isfinite(value) and value > 0


def _originals(records: Sequence[RunRecord]) -> tuple[list[RunRecord], list[RunRecord]]:
    """Each measurement once: the run that was measured, or the first that took it over."""
    seen = {record.run_id for record in records}
    kept: list[RunRecord] = []
    repeated: list[RunRecord] = []
    for record in records:
        original = record.tags.get(REUSED)
        (repeated if original in seen else kept).append(record)
        if original:
            seen.add(original)
    return kept, repeated


def _at_one_intensity(
    records: Sequence[RunRecord], given: Intensity | Trace | None
) -> tuple[list[RunRecord], list[str]]:
    """All at the same g/kWh x PUE; and what was changed."""
    if isinstance(given, Trace):
        return list(records), []
    known = Counter(factor for record in records if (factor := _factor(record)))
    if len(known) <= 1 and known.total() == len(records) and not given:
        return list(records), []
    zone, pue = _common(records, known, given)
    factor = (zone.g_per_kwh, pue)
    same = [r if _factor(r) == factor else _reckoned(r, zone, pue) for r in records]
    return same, _told(known, len(records), zone, pue)


def _factor(record: RunRecord) -> tuple[float, float] | None:
    """The g/kWh and the PUE behind a run's kilograms; None where nobody knows."""
    g_per_kwh = record.tags.get("intensity_g_per_kwh")
    return (float(g_per_kwh), float(record.tags.get("pue", "1"))) if g_per_kwh else None


def _common(
    records: Sequence[RunRecord],
    known: "Counter[tuple[float, float]]",
    given: Intensity | None,
) -> tuple[Intensity, float]:
    """The most common intensity, the first of equals, with its PUE."""
    if not known:
        return given or _implied(records), 1.0
    factor = known.most_common(1)[0][0]
    pue = Counter({p: sum(n for (_, q), n in known.items() if q == p) for _, p in known})
    if given:
        return given, pue.most_common(1)[0][0]
    tags = next(record.tags for record in records if _factor(record) == factor)
    zone = Intensity(
        g_per_kwh=factor[0],
        zone=tags.get("intensity_zone", "given"),
        source=tags.get("intensity_source", "not stated"),
        year=tags.get("intensity_year", ""),
        assumed=tags.get("intensity_assumed") == "true",
    )
    return zone, factor[1]


def _implied(records: Sequence[RunRecord]) -> Intensity:
    """What other tools have reckoned with: their kilograms by their kilowatt-hours, the median."""
    ratios = [
        r.metrics["emissions_kg"] * GRAMS_PER_KG / r.metrics["energy_kwh"]
        for r in records
        if _is_spent(r, "emissions_kg")
    ]
    if not ratios:
        return intensity.resolve("world")
    return Intensity(
        g_per_kwh=statistics.median(ratios),
        zone="as other tools had it",
        source="their emissions divided by their energy",
        year="",
        assumed=True,
    )


def _reckoned(record: RunRecord, zone: Intensity, pue: float) -> RunRecord:
    alike = replace(record, tags={**record.tags, "pue": repr(pue)})
    return recompute.with_intensity(alike, zone)


def _told(
    known: "Counter[tuple[float, float]]", runs: int, zone: Intensity, pue: float
) -> list[str]:
    """Which intensities were there, and what all are reckoned at; nothing where nothing changed."""
    if known[zone.g_per_kwh, pue] == runs:
        return []
    there = [f"{_runs(n)} at {g:g} g/kWh{_times(p)}" for (g, p), n in known.most_common()]
    others = runs - known.total()
    there += [f"{_runs(others)} at an unknown one"] if others else []
    return [
        f"carbon intensities: {listed(there)}; all kilograms here are reckoned at "
        f"{zone.note}{_times(pue)}"
    ]


def _times(pue: float) -> str:
    return f" x PUE {pue:g}" if pue != 1 else ""


def _of_one_extent(records: Sequence[RunRecord]) -> tuple[list[RunRecord], list[str]]:
    """Figures of what all runs did; and what was cut off where some did more.

    A train run loads its base model and data itself, a trial does not; task metrics cost what is
    their own. Runs that have noted no phases remain as they are.
    """
    ours = [record for record in records if record.kind != FOREIGN]
    if len({_extent(record) for record in ours}) <= 1:
        return list(records), []
    cut = [_own(record) if _has_phases(record) else record for record in records]
    whole = [r for r in records if not _has_phases(r) and REUSED not in r.tags]
    also = f"; {len(whole)} that noted no phases keep their totals" if whole else ""
    return cut, [
        "some runs hold the loading of base model and data, or task metrics, and others do not: "
        f"energy, emissions and time are those of training, validation and saving alone{also}"
    ]


def _extent(record: RunRecord) -> tuple[bool, bool]:
    """Whether a run's figures hold its setup, and whether they hold task metrics."""
    setup = record.kind not in SETUP_SHARED and REUSED not in record.tags
    return setup, "quality/energy_kwh" in record.metrics


def _has_phases(record: RunRecord) -> bool:
    return "train/energy_kwh" in record.metrics


def _own(record: RunRecord) -> RunRecord:
    """The record with the figures of its own phases; bounds in proportion."""
    figures = record.metrics
    own = {name: _sum(figures, name) for name in FIGURES if name in figures}
    share = own["energy_kwh"] / figures["energy_kwh"]
    bounds = {name: figures[name] * share for name in BOUNDS if name in figures}
    kg, hours = own["emissions_kg"], own.get("runtime_h")
    rate = {RATE: kg / hours} if hours else {}
    return replace(
        record,
        metrics={**figures, **own, **bounds, **rate},
        tags={**record.tags, **_own_course(record)},
    )


def _sum(figures: Mapping[str, float], name: str) -> float:
    return math.fsum(figures.get(f"{phase}/{name}", 0.0) for phase in OWN)


def _own_course(record: RunRecord) -> dict[str, str]:
    """Its course without what came before its first validation.

    That was the setup; with task metrics also those of the base model, which are not noted by
    themselves: then the first validation is taken to have cost what one does on average.
    """
    if not record.course:
        return {}
    setup = record.metrics.get("setup/emissions_kg", 0.0)
    began = record.course[0].emissions_kg
    if "quality/emissions_kg" in record.metrics:
        one = record.metrics.get("eval/emissions_kg", 0.0) / len(record.course)
        setup = max(setup, began - one)
    before = min(setup, began)
    course = [replace(e, emissions_kg=e.emissions_kg - before) for e in record.course]
    return {EVALUATIONS: to_tag(course)}


def _notes(records: Sequence[RunRecord]) -> list[str]:
    """What a reader must know of runs that are compared as they are."""
    each = (_models, _others, _several, _flagged, _early)
    return [line for line in (*_data(records), *(tell(records) for tell in each)) if line]


def _data(records: Sequence[RunRecord]) -> list[str]:
    panels = sorted({blocks.panel(record) for record in records})
    tasks = Counter(panel.task for panel in panels)
    return [
        f"{task or 'runs without a task'}: {count} data sets "
        f"({listed([p.data[:6] or 'unknown' for p in panels if p.task == task])}), "
        "compared separately"
        for task, count in tasks.items()
        if count > 1
    ]


def _models(records: Sequence[RunRecord]) -> str:
    models = sorted({blocks.block(record).model or "unknown" for record in records})
    if len(models) <= 1:
        return ""
    return (
        f"{len(models)} base models ({listed(models)}), which may count tokens differently: losses "
        "compare within one of them, bits per byte across"
    )


def _others(records: Sequence[RunRecord]) -> str:
    count = sum(FOUND in record.tags for record in records)
    if not count:
        return ""
    return (
        f"{_runs(count)} of other tools, by CodeCarbon's figures: on unknown data, so compared "
        "only within their experiment"
    )


def _several(records: Sequence[RunRecord]) -> str:
    runs = [record for record in records if " x " in blocks.gpu(record)]
    if not runs:
        return ""
    return f"{_runs(len(runs))} on several GPUs at once, as hardware of their own: {_ids(runs)}"


def _flagged(records: Sequence[RunRecord]) -> str:
    runs = [record for record in records if record.tags.get("energy_flags")]
    if not runs:
        return ""
    return f"{_runs(len(runs))} flagged, such as paused or shared (see energy_flags): {_ids(runs)}"


def _early(records: Sequence[RunRecord]) -> str:
    runs = [record for record in records if record.ended_early]
    if not runs:
        return ""
    return (
        f"{_runs(len(runs))} ended early by a study: on the fronts, not in the effects of "
        f"hyperparameters: {_ids(runs)}"
    )


def _runs(count: int) -> str:
    return f"{count} run" + "s" * (count != 1)


def _ids(records: Sequence[RunRecord]) -> str:
    return listed([record.run_id[:8] for record in records], NAMED)


def listed(names: Sequence[str], most: int = SHOWN) -> str:
    """The first of the names, for one line of a report."""
    return ", ".join(names[:most]) + ", ..." * (len(names) > most)
