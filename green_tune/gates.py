"""Sanity gates: what cannot be true of a measurement, said in one sentence each.

Owns the rules and their thresholds, as pure functions over a `Measurement`. It knows neither how
the figures were obtained nor what becomes of a run whose figures fail. Every gate answers "" when
it passes or when a fact that it needs is absent; the first one lets no NaN through to the others.
"""

import math
from collections.abc import Sequence

from green_tune.footprint import (
    COLUMNS,
    GRAMS_PER_KG,
    PHASES,
    SECONDS_PER_HOUR,
    Measurement,
    Segment,
)

WATTS_PER_KW = 1000

POWER_OVER_LIMIT = 1.1  # a board regulates around its limit and overshoots it for a moment
COUNTER_STEP_S = 0.1  # how often NVML's energy counter moves, about (documentation of Zeus)
LARGEST_LIMIT_W = 1200  # of a board, where the driver names no limit
COUNTERS_APART = 0.01  # two readers of one counter, at edges that are not quite the same
# A sensor sees a quarter of an A100's or H100's time (arXiv:2312.02741), so the power integral is
# the worse of the two; beyond this, one of them is broken.
INTEGRAL_APART = 0.1
INTEGRAL_FROM_S = 60  # with fewer samples, one a second, the integral says little
PHASE_FROM_S = 10  # shorter phases are mostly their edges
BUSY, BUSY_OVER_IDLE = 0.8, 1.2  # a GPU that computes draws more than one that waits
ARITHMETIC = 1e-9  # relative; the same sum or product, done twice
CLOCKS_APART, CLOCKS_APART_S = 0.01, 1  # CodeCarbon starts and stops beside us

# The facts that are read here, all of them optional.
LIMIT, IDLE = "gpu_power_limit_w", "gpu_idle_w"
CC_PARTS = ("codecarbon.energy_cpu_kwh", "codecarbon.energy_gpu_kwh", "codecarbon.energy_ram_kwh")
CC_HOURS, CC_KWH, CC_KG = "codecarbon.runtime_h", "codecarbon.energy_kwh", "codecarbon.emissions_kg"
FACTS = (LIMIT, IDLE, *CC_PARTS, CC_HOURS, CC_KWH, CC_KG)


def failures(measurement: Measurement) -> list[str]:
    """One sentence, with its figures, for each gate that the measurement fails; pure.

    Where a figure is no amount at all (NaN, infinite, negative), that alone is said: no sum with
    it means anything.
    """
    if said := _amounts(measurement):
        return [said]
    gates = (
        _power, _counters, _integral, _idle_while_busy, _codecarbon_sum, _codecarbon_emissions,
        _emissions, _clocks, _spent_something,
    )  # fmt: skip
    return [said for gate in gates if (said := gate(measurement))]


def _amounts(m: Measurement) -> str:
    """Every figure is finite and at least 0."""
    figures = [
        (f"{name} of {s.phase}", getattr(s, name)) for s in m.segments for name in COLUMNS[1:]
    ]
    figures += [(name, m.facts[name]) for name in FACTS if name in m.facts]
    figures += [("the intensity", m.basis.g_per_kwh), ("the PUE", m.basis.pue)]
    wrong = [f"{name} is {value:g}" for name, value in figures if not 0 <= value < math.inf]
    others = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return f"{wrong[0]}{others}, which is no amount" if wrong else ""


def _power(m: Measurement) -> str:
    """(a) No GPU draws much more than it is allowed to, in the run or in any phase."""
    if not (known := _known(m, LIMIT)):
        return ""
    phases = {name: _phase(m, name) for name in PHASES}
    long = {name: part for name, part in phases.items() if _seconds(part) >= PHASE_FROM_S}
    above = [
        f"{_mean_w(part):.1f} W in {name}"
        for name, part in {"the run": m.segments, **long}.items()
        if _sum(part, "gpu_counted_kwh")
        > _kwh(known[0], POWER_OVER_LIMIT * _seconds(part) + COUNTER_STEP_S)
    ]
    limit = f"more than {POWER_OVER_LIMIT:g} x its limit of {known[0]:g} W"
    return f"the GPU drew {', '.join(above)}: {limit}" if above else ""


def _counters(m: Measurement) -> str:
    """(b) CodeCarbon and we read the same counter of the same GPUs, where they have one."""
    known = _known(m, "codecarbon.energy_gpu_kwh")
    if not known or "counter" not in m.basis.methods["gpu"]:
        return ""
    theirs, limit = known[0], m.facts.get(LIMIT, LARGEST_LIMIT_W)
    ours = _sum(m.segments, "gpu_counted_kwh")
    allowed = max(COUNTERS_APART * ours, _kwh(limit, COUNTER_STEP_S))
    said = f"CodeCarbon's GPU energy is {theirs:.6g} kWh, the counter's {ours:.6g} kWh"
    return "" if abs(theirs - ours) <= allowed else f"{said}: more than {allowed:.2g} kWh apart"


def _integral(m: Measurement) -> str:
    """(c) The energy counter agrees with the power readings, where there are both."""
    counted, sampled = (_sum(m.segments, f"gpu_{how}_kwh") for how in ("counted", "sampled"))
    if not (counted and sampled and _seconds(m.segments) > INTEGRAL_FROM_S):
        return ""
    said = f"the GPU's counter says {counted:.6g} kWh, its power readings {sampled:.6g} kWh"
    apart = f"more than {INTEGRAL_APART:.0%} apart"
    return "" if abs(counted - sampled) <= INTEGRAL_APART * counted else f"{said}: {apart}"


def _idle_while_busy(m: Measurement) -> str:
    """(d) A GPU that says it is busy training draws more than when it waits."""
    train = _phase(m, "train")
    hours, busy_h = _sum(train, "runtime_h"), _sum(train, "gpu_busy_h")
    known = _known(m, IDLE)
    if not known or _seconds(train) < PHASE_FROM_S or busy_h < BUSY * hours:
        return ""
    said = f"the GPU was {busy_h / hours:.0%} busy in train at {_mean_w(train):.1f} W"
    least = f"less than {BUSY_OVER_IDLE:g} x its idle {known[0]:g} W"
    return "" if _mean_w(train) >= BUSY_OVER_IDLE * known[0] else f"{said}: {least}"


def _codecarbon_sum(m: Measurement) -> str:
    """(e) CodeCarbon's energy is the sum of its parts."""
    if not (known := _known(m, CC_KWH, *CC_PARTS)):
        return ""
    energy, parts = known[0], math.fsum(known[1:])
    said = f"CodeCarbon's energy is {energy:.12g} kWh, the sum of its parts {parts:.12g} kWh"
    return "" if _equal(energy, parts) else said


def _codecarbon_emissions(m: Measurement) -> str:
    """(f) CodeCarbon's emissions are its energy x the intensity forced on it; its PUE is 1."""
    if not (known := _known(m, CC_KG, CC_KWH)):
        return ""
    (kg, kwh), g_per_kwh = known, m.basis.g_per_kwh
    said = f"CodeCarbon's emissions are {kg:.12g} kg, not {kwh:.12g} kWh x {g_per_kwh:g} g/kWh"
    return "" if _equal(kg, kwh * g_per_kwh / GRAMS_PER_KG) else said


def _emissions(m: Measurement) -> str:
    """(f) And so are ours, times the PUE; worked out here once more."""
    total, basis = m.total, m.basis
    said = f"the emissions are {total.emissions_kg:.12g} kg, not {total.energy_kwh:.12g} kWh"
    product = total.energy_kwh * basis.pue * basis.g_per_kwh / GRAMS_PER_KG
    factors = f"x PUE {basis.pue:g} x {basis.g_per_kwh:g} g/kWh"
    return "" if _equal(total.emissions_kg, product) else f"{said} {factors}"


def _clocks(m: Measurement) -> str:
    """(g) CodeCarbon ran for as long as we did, `paused` time included."""
    if not (known := _known(m, CC_HOURS)):
        return ""
    theirs, ours = known[0] * SECONDS_PER_HOUR, _seconds(m.segments)
    said = f"CodeCarbon ran for {theirs:.1f} s, we for {ours:.1f} s"
    return "" if abs(theirs - ours) <= CLOCKS_APART * ours + CLOCKS_APART_S else said


def _spent_something(m: Measurement) -> str:
    """A run without energy would win every Pareto front; so would one without its GPU's."""
    total, methods = m.total, m.basis.methods
    spent = {"cpu": total.energy_cpu_kwh, "ram": total.energy_ram_kwh, "gpu": total.energy_gpu_kwh}
    expected = [part for part in ("cpu", "ram") if not methods[part].startswith("none")]
    expected += ["gpu"] if methods["gpu"].startswith("measured") else []
    missing = [f"{part} ({methods[part]})" for part in expected if not spent[part] > 0]
    if missing:
        return f"no energy of {', '.join(missing)}"
    return "" if total.energy_kwh > 0 else "the run has no energy at all"


def _known(m: Measurement, *names: str) -> list[float]:
    """These facts, or none of them when one is absent."""
    return [m.facts[name] for name in names] if all(name in m.facts for name in names) else []


def _phase(m: Measurement, name: str) -> list[Segment]:
    return [segment for segment in m.segments if segment.phase == name]


def _sum(segments: Sequence[Segment], name: str) -> float:
    return math.fsum(getattr(segment, name) for segment in segments)


def _seconds(segments: Sequence[Segment]) -> float:
    return _sum(segments, "runtime_h") * SECONDS_PER_HOUR


def _kwh(watts: float, seconds: float) -> float:
    return watts * seconds / SECONDS_PER_HOUR / WATTS_PER_KW


def _mean_w(segments: Sequence[Segment]) -> float:
    hours = _sum(segments, "runtime_h")
    return _sum(segments, "gpu_counted_kwh") * WATTS_PER_KW / hours if hours else math.inf


def _equal(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=ARITHMETIC)
