"""What if: a measured run as it would be on another GPU, in another country, or at another hour.

Pure functions over records. A projection is no measurement: it has a range, and says what it rests
on. It knows nothing of stores, and not whether a run fits into another GPU: that is `fit`'s.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from green_tune.budget import Amount
from green_tune.cells import KG_TO_G, cropped, duration, new_table, to_text
from green_tune.errors import ConfigError
from green_tune.footprint import GRAMS_PER_KG, SECONDS_PER_HOUR
from green_tune.hardware import Gpu
from green_tune.intensity import Intensity
from green_tune.results import RunRecord
from green_tune.trace import Trace
from green_tune.transfer import FIGURES, KINDS, Basis, computing, machine, scale

WIDTH, TITLE = 80, 26
STAMP = "%Y-%m-%d %H:%M"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a run is projected to; what is None stays as it was.

    A `start` without a time zone is UTC; without a start, a trace counts from the run's own.
    """

    gpu: Gpu | None = None
    intensity: Intensity | None = None
    trace: Trace | None = None
    start: datetime | None = None
    pue: float | None = None


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A run as it would be elsewhere: h, kWh of the machine, kg CO2e with the PUE of there.

    The ranges are the projection's own error. What the meter may have missed stands in the run's
    bounds, and goes with every figure here alike.
    """

    title: str
    basis: Basis
    runtime_h: float
    runtime_low_h: float
    runtime_high_h: float
    energy_kwh: float
    energy_low_kwh: float
    energy_high_kwh: float
    emissions_kg: float
    emissions_low_kg: float
    emissions_high_kg: float
    notes: tuple[str, ...]  # how each part was projected


@dataclass(frozen=True, kw_only=True)
class Start:
    """The best hour to start at, in g CO2e per kWh of the run; and the worst, and the first."""

    at: datetime
    g_per_kwh: float
    worst_g_per_kwh: float
    now_g_per_kwh: float

    @property
    def saved_of_worst(self) -> float:
        """The part that it emits less than from the worst hour, 0 to 1."""
        return 1 - self.g_per_kwh / self.worst_g_per_kwh if self.worst_g_per_kwh else 0.0

    @property
    def saved_of_now(self) -> float:
        """The part that it emits less than from the first hour, 0 to 1."""
        return 1 - self.g_per_kwh / self.now_g_per_kwh if self.now_g_per_kwh else 0.0


def project(record: RunRecord, target: Target, store: Sequence[RunRecord]) -> Projection:
    """A measured run as it would be elsewhere; `store` are runs that pairs of GPUs are sought in.

    Raises:
        ConfigError: it has no energy, nothing tells how the GPUs compare, or the trace has a gap.
    """
    total, part = _measured(record), computing(record)
    by = scale(record, target.gpu, store)
    rest_h = total.runtime_h - part.runtime_h
    rest_kwh = total.energy_kwh - part.energy_kwh
    hours, kwh = part.runtime_h * by.time, part.energy_kwh * by.energy
    least_h, most_h = by.time_width.interval(hours)
    least_kwh, most_kwh = by.energy_width.interval(kwh)
    kg_per_kwh, note = _intensity(record, target, rest_h + hours)
    return Projection(
        title=_title(record, target),
        basis=by.basis,
        runtime_h=rest_h + hours,
        runtime_low_h=rest_h + least_h,
        runtime_high_h=rest_h + most_h,
        energy_kwh=rest_kwh + kwh,
        energy_low_kwh=rest_kwh + least_kwh,
        energy_high_kwh=rest_kwh + most_kwh,
        emissions_kg=(rest_kwh + kwh) * kg_per_kwh,
        emissions_low_kg=(rest_kwh + least_kwh) * kg_per_kwh,
        emissions_high_kg=(rest_kwh + most_kwh) * kg_per_kwh,
        notes=(*by.notes, note),
    )


def best_start(trace: Trace, runtime_h: float, within: tuple[datetime, datetime]) -> Start:
    """When a run of that length would emit least, started at the first moment or at a full hour.

    Its energy counts as even over its time. `within` are the first and the last start.

    Raises:
        ConfigError: the trace does not cover all of it, or there is no start between the two.
    """
    first, last = (_utc(moment) for moment in within)
    if last < first:
        raise ConfigError(f"the last start, {last:{STAMP}}, is before the first, {first:{STAMP}}")
    length = (last - first).total_seconds() + runtime_h * SECONDS_PER_HOUR
    _covered(trace, first, length)
    starts = [first]
    hour = first.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    while hour <= last:
        starts.append(hour)
        hour += timedelta(hours=1)
    grams = [_covered(trace, moment, runtime_h * SECONDS_PER_HOUR) for moment in starts]
    least = min(grams)
    return Start(
        at=starts[grams.index(least)],
        g_per_kwh=least,
        worst_g_per_kwh=max(grams),
        now_g_per_kwh=grams[0],
    )


def report(projections: Sequence[Projection], record: RunRecord) -> str:
    """The run as measured and its projections, at 80 columns; below, how each was projected."""
    head = f"Run {record.run_id[:8]} as measured; the rows below it are projections."
    table = new_table("run", "runtime", "kWh", "g CO2e", "range", "from")
    kg = record.metrics.get("emissions_kg")
    table.add_row(
        cropped(f"measured: {machine(record)}", TITLE),
        duration(record.metrics["runtime_h"]),
        f"{record.metrics['energy_kwh']:.3g}",
        "" if kg is None else f"{kg * KG_TO_G:.3g}",
        "",
        "the meter",
    )
    for each in projections:
        table.add_row(*_row(each))
    lines = [line for each in projections for line in _said(each)]
    return "\n".join([head, "", to_text(table, WIDTH), "", *lines])


def rows(projections: Sequence[Projection]) -> list[dict[str, Any]]:
    """The projections as rows of a table for machines."""
    return [{**asdict(each), "notes": list(each.notes)} for each in projections]


def _row(each: Projection) -> list[str]:
    grams = [kg * KG_TO_G for kg in (each.emissions_low_kg, each.emissions_high_kg)]
    return [
        cropped(each.title, TITLE),
        duration(each.runtime_h),
        f"{each.energy_kwh:.3g}",
        f"{each.emissions_kg * KG_TO_G:.3g}",
        "" if grams[0] == grams[1] else f"{grams[0]:.3g}..{grams[1]:.3g}",
        each.basis,
    ]


def _said(each: Projection) -> list[str]:
    said = f"Projection, not measured: {each.title}. {' '.join(each.notes)}"
    return [textwrap.fill(said, WIDTH, break_on_hyphens=False)]


def _measured(record: RunRecord) -> Amount:
    """What it took.

    Raises:
        ConfigError: it is no training, or its energy is not known or not to be trusted.
    """
    name = f"run {record.run_id[:8]}"
    if record.kind not in KINDS:
        raise ConfigError(f"{name} is a {record.kind}; project one of {', '.join(KINDS)}")
    spent = [record.metrics.get(figure, 0.0) for figure in FIGURES]
    if not all(spent) or record.tags.get("energy_valid") == "false":
        raise ConfigError(f"{name} has no valid energy and runtime; project a run that has both")
    return Amount(runtime_h=spent[0], energy_kwh=spent[1])


def _intensity(record: RunRecord, target: Target, runtime_h: float) -> tuple[float, str]:
    """Kilograms for a kWh of the machine, and how they are known."""
    if target.intensity and target.trace:
        raise ConfigError("a projection takes a country or a trace, not both")
    if target.start and not target.trace:
        raise ConfigError("another hour needs a trace of intensities")
    own = float(record.tags.get("pue", "1"))
    pue = own if target.pue is None else target.pue
    if target.intensity:
        note = f"Emissions at {target.intensity.note}, as exact as that figure is."
        return pue * target.intensity.g_per_kwh / GRAMS_PER_KG, note
    if target.trace:
        start = _utc(target.start or record.started)
        g = _covered(target.trace, start, runtime_h * SECONDS_PER_HOUR)
        note = (
            f"Emissions at {g:.3g} g/kWh, the mean of {target.trace.source} over the "
            f"{duration(runtime_h)} from {start:{STAMP}} UTC, the energy being even over them."
        )
        return pue * g / GRAMS_PER_KG, note
    kg = record.metrics.get("emissions_kg")
    if kg is None:
        raise ConfigError(f"run {record.run_id[:8]} has no emissions; give a country")
    note = f"Emissions for a kWh as the run's own{f', whose PUE was {own:g}' * (pue != own)}."
    return kg / record.metrics["energy_kwh"] * pue / own, note


def _covered(trace: Trace, start: datetime, seconds: float) -> float:
    """The mean intensity over a stretch.

    Raises:
        ConfigError: the trace has a gap there.
    """
    found = trace.mean_g_per_kwh(start.timestamp(), seconds)
    if found is not None:
        return found
    gap = trace.gap(start.timestamp(), seconds)
    moment = datetime.fromtimestamp(start.timestamp() if gap is None else gap, UTC)
    raise ConfigError(
        f"{trace.source} has no intensity at {moment:{STAMP}} UTC, and the run would take "
        f"{duration(seconds / SECONDS_PER_HOUR)} from {start:{STAMP}} UTC on; take another start"
    )


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _title(record: RunRecord, target: Target) -> str:
    parts = [target.gpu.name] if target.gpu else []
    if target.intensity:
        parts.append(target.intensity.zone)
    if target.trace:
        parts += [target.trace.zone, f"{_utc(target.start or record.started):{STAMP}}"]
    parts += [] if target.pue is None else [f"PUE {target.pue:g}"]
    return ", ".join(parts or [machine(record)])
