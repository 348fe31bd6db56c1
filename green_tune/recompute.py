"""Kilograms derived anew: a run's stored energy under another carbon intensity.

Pure functions from records to records. The store keeps what was measured; what is shown may be
reckoned with another figure, or with one for each hour. It knows neither stores nor files.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from green_tune import intensity
from green_tune.errors import ConfigError
from green_tune.footprint import GRAMS_PER_KG, OVERHEAD, PHASES, Segment
from green_tune.intensity import ALPHA_2, Intensity
from green_tune.results import EVALUATIONS, RunRecord, to_tag
from green_tune.trace import HOUR_S, UNNAMED, Trace

RATE = "emissions_rate_kg_per_h"
PARTS = ("", *(f"{name}/" for name in PHASES), OVERHEAD)
# Every kilogram of a record, and the energy that it is derived from.
ENERGY_OF = {f"{part}emissions_kg": f"{part}energy_kwh" for part in PARTS} | {
    "emissions_low_kg": "energy_low_kwh",
    "emissions_high_kg": "energy_high_kwh",
}
SAME_ENERGY = 1e-6  # relative; sums of the same segments differ by 1e-14


def with_intensity(record: RunRecord, zone: Intensity) -> RunRecord:
    """The record with its kilograms derived anew: stored energy x PUE x another intensity."""
    return _derived(record, dict.fromkeys(ENERGY_OF, zone.g_per_kwh), zone.to_tags())


def with_trace(record: RunRecord, trace: Trace, segments: Sequence[Segment] | None) -> RunRecord:
    """The record with its kilograms derived anew: each segment times the intensity of its time.

    Bounds, for which there are no segments, take the run's mean. Where `hole` has something to
    say, the record loses its kilograms: a right figure or none.
    """
    if "energy_kwh" not in record.metrics:
        return record
    if hole(record, trace, segments):
        return _derived(record, {}, {})
    spent = [segment for segment in segments or () if segment.energy_kwh]
    mean = _mean(trace, spent)
    g_per_kwh = dict.fromkeys(ENERGY_OF, mean) | {
        f"{phase}/emissions_kg": _mean(trace, [s for s in spent if s.phase == phase])
        for phase in {segment.phase for segment in spent}
    }
    tags = {
        "intensity_g_per_kwh": f"{mean:g}",
        "intensity_zone": trace.zone,
        "intensity_source": trace.source,
        "intensity_year": trace.years,
        "intensity_assumed": "false",
    }
    return _derived(record, g_per_kwh, tags)


def hole(record: RunRecord, trace: Trace, segments: Sequence[Segment] | None) -> str:
    """Why the trace gives this run no kilograms, in one line; empty where it does.

    A run without energy has none to lose.
    """
    if "energy_kwh" not in record.metrics:
        return ""
    spent = [segment for segment in segments or () if segment.energy_kwh]
    problem = _missing(record, spent) or _uncovered(trace, spent)
    return f"run {record.run_id[:8]} {problem}" if problem else ""


def warnings(
    records: Sequence[RunRecord], trace: Trace, segments: Mapping[str, Sequence[Segment]]
) -> list[str]:
    """What a reader of the new kilograms must know, a line for each reason, however many runs.

    `segments` are those of each run by its id.
    """
    holes = {record.run_id: hole(record, trace, segments[record.run_id]) for record in records}
    said = [
        [line for run_id, line in holes.items() if line and bool(segments[run_id]) == timed]
        for timed in (False, True)
    ]
    lines = [
        f"no kilograms for {len(alike)} of {len(records)} runs: {alike[0]}"
        + f" ({len(alike) - 1} more like it)" * (len(alike) > 1)
        for alike in said
        if alike
    ]
    elsewhere = _elsewhere([record for record in records if not holes[record.run_id]], trace)
    return [*lines, elsewhere] if elsewhere else lines


def _elsewhere(records: Sequence[RunRecord], trace: Trace) -> str:
    """A trace of another country answers what would have been, and not what was."""
    here = _country(trace.zone)
    zones = Counter(
        record.tags["intensity_zone"]
        for record in records
        if "energy_kwh" in record.metrics and record.tags.get("intensity_assumed") == "false"
    )
    others = [f"{n} in {zone}" for zone, n in zones.items() if zone not in ("given", here)]
    if not here or not others:
        return ""
    said = f"the trace is of {trace.zone}, but runs were recorded elsewhere"
    return f"what-if: {said}: {', '.join(others)}"


def _country(zone: str) -> str:
    """The country of a zone such as US-CAL-CISO, as runs record it; a name remains as it is."""
    code = zone.split("-")[0]
    try:
        return intensity.resolve(code).zone if len(code) == ALPHA_2 else zone.replace(UNNAMED, "")
    except ConfigError:
        return zone


def _missing(record: RunRecord, spent: Sequence[Segment]) -> str:
    if not spent:
        return "has no energy.csv, so nobody knows at which hour its energy was spent"
    there, all_of_it = math.fsum(s.energy_kwh for s in spent), record.metrics["energy_kwh"]
    if math.isclose(there, all_of_it, rel_tol=SAME_ENERGY):
        return ""
    return f"has {there:.6g} kWh in its energy.csv, but spent {all_of_it:.6g} kWh"


def _uncovered(trace: Trace, spent: Sequence[Segment]) -> str:
    gaps = [trace.gap(s.started_s, s.runtime_h * HOUR_S) for s in spent]
    first = min((gap for gap in gaps if gap is not None), default=None)
    if first is None:
        return ""
    hour = datetime.fromtimestamp(first, UTC)
    return f"ran at {hour:%Y-%m-%d %H}:00 UTC, an hour that {trace.source} does not cover"


def _mean(trace: Trace, segments: Sequence[Segment]) -> float:
    """The intensity that all of the segments' energy had on average, in g/kWh."""
    means = [trace.mean_g_per_kwh(s.started_s, s.runtime_h * HOUR_S) for s in segments]
    assert None not in means, "`hole` has looked"
    grams = math.fsum(s.energy_kwh * (g or 0.0) for s, g in zip(segments, means, strict=True))
    return grams / math.fsum(s.energy_kwh for s in segments)


def _derived(
    record: RunRecord, g_per_kwh: Mapping[str, float], tags: Mapping[str, str]
) -> RunRecord:
    """The record with these intensities behind its kilograms, and with none of its own left.

    Its course takes the run's mean, since no tag notes at which hour each validation was.
    """
    if "energy_kwh" not in record.metrics:
        return record
    pue = float(record.tags.get("pue", "1"))
    kg = {
        name: record.metrics[ENERGY_OF[name]] * pue * g / GRAMS_PER_KG
        for name, g in g_per_kwh.items()
        if ENERGY_OF.get(name) in record.metrics
    }
    kept = {k: v for k, v in record.metrics.items() if k not in ENERGY_OF and k != RATE}
    own = {k: v for k, v in record.tags.items() if k.startswith("intensity_") or k == EVALUATIONS}
    others = {k: v for k, v in record.tags.items() if k not in own}
    tags = {**others, **tags, **_course(record, kg.get("emissions_kg"))}
    return replace(record, metrics={**kept, **kg, **_rate(kg, record)}, tags=tags)


def _course(record: RunRecord, kg: float | None) -> dict[str, str]:
    """Its course's tag in proportion to the run's new kilograms; none where nobody knows them."""
    before = record.metrics.get("emissions_kg")
    if not record.course or not before or kg is None:
        return {}
    course = [replace(e, emissions_kg=e.emissions_kg * kg / before) for e in record.course]
    return {EVALUATIONS: to_tag(course)}


def _rate(kg: Mapping[str, float], record: RunRecord) -> dict[str, float]:
    hours = record.metrics.get("runtime_h")
    if "emissions_kg" not in kg or hours is None:
        return {}
    return {RATE: kg["emissions_kg"] / hours if hours else 0.0}
