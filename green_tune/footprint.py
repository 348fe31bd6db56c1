"""What a run spent: segments of time with their energy, and the footprints that they add up to.

Everything here is a pure value. The meter makes segments; phases, totals, bounds and kilograms
are derived from them, so that whoever has the segments can derive every figure again.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Self

# What a run does, in this order; `between` is what lies between the others, `paused` when the
# process was stopped from outside.
PHASES = ("setup", "train", "eval", "quality", "save", "between", "paused")
OVERHEAD = "overhead/"  # prefix of what a sweep spends beside its trials
RESUMED = "resumed "  # what a flag begins with that says how often
GRAMS_PER_KG = 1000
CC_RUNTIME = "codecarbon.runtime_h"
SEGMENT_S = 60.0  # of the time series; a longer stretch of one phase is several
CLOSE_S = 0.01  # two clocks; ends and starts that are nearer are one moment
SECONDS_PER_HOUR = 3600
EXACT_BITS = 48  # of 53: sums of up to 32 totals stay exact

# How far CodeCarbon read below a wall meter: none of the runs less than the first number, none
# more than the second. Recomputed from github.com/raphischer/ai-energy-validation, published with
# arXiv:2509.22092: 198 runs on GPUs (language and vision models), 120 on CPUs alone.
SHORTFALL_GPU = (0.13, 0.38)
SHORTFALL_CPU = (0.09, 0.67)
# No published comparison covers a load model on a shared host: what is modelled may be half.
LEAST_OF_MODELLED = 0.5


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of time in one phase, with what was spent in it. Every amount adds up.

    `gpu_counted_kwh` is the whole GPU by its counter, `gpu_sampled_kwh` the same by its power
    readings, which check each other; `energy_gpu_kwh` is the share of it that is this run's.
    `gpu_busy_h` is its utilisation times hours.
    """

    phase: str
    node: int = 0  # of several that train together
    started_s: float  # UTC, in seconds since 1970
    runtime_h: float
    energy_cpu_kwh: float
    energy_gpu_kwh: float
    energy_ram_kwh: float
    gpu_counted_kwh: float = 0.0
    gpu_sampled_kwh: float = 0.0
    gpu_busy_h: float = 0.0

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f"{self.phase} is no phase; known: {', '.join(PHASES)}")

    @property
    def energy_kwh(self) -> float:
        """The sum of the three parts."""
        return self.energy_cpu_kwh + self.energy_gpu_kwh + self.energy_ram_kwh

    @property
    def ended_s(self) -> float:
        """UTC, in seconds since 1970."""
        return self.started_s + self.runtime_h * SECONDS_PER_HOUR

    def joined(self, later: "Segment") -> "Segment":
        """This segment and a later one of the same phase as one."""
        sums = {name: getattr(self, name) + getattr(later, name) for name in AMOUNTS}
        return replace(self, **sums)


COLUMNS = tuple(spec.name for spec in fields(Segment))
NUMBERS = COLUMNS[2:]  # all but the phase and the node
AMOUNTS = COLUMNS[3:]  # and but when it began


def appended(segments: list[Segment], new: Segment) -> list[Segment]:
    """The time series with one more: it goes on with the last one, or begins another."""
    if segments and _continues(segments[-1], new):
        return [*segments[:-1], segments[-1].joined(new)]
    return [*segments, new]


def _continues(last: Segment, new: Segment) -> bool:
    short = new.started_s - last.started_s < SEGMENT_S
    return new.phase == last.phase and short and abs(new.started_s - last.ended_s) < CLOSE_S


def to_csv(segments: Sequence[Segment]) -> str:
    """Segments as CSV, one a line; `from_csv` reads them back equal."""
    lines = [",".join(str(getattr(s, name)) for name in COLUMNS) for s in segments]
    return "\n".join([",".join(COLUMNS), *lines]) + "\n"


def from_csv(text: str) -> list[Segment]:
    """The segments of `to_csv`.

    Raises:
        ValueError: it is not such a table.
    """
    header, *rows = list(csv.reader(io.StringIO(text))) or [[]]
    if tuple(header) != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
        raise ValueError(f"not a table of segments, whose columns are {', '.join(COLUMNS)}")
    return [
        Segment(
            phase=row[0],
            node=int(row[1]),
            **dict(zip(NUMBERS, map(float, row[2:]), strict=True)),
        )
        for row in rows
    ]


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Time, energy and emissions of one measured window."""

    runtime_h: float = 0.0
    energy_cpu_kwh: float = 0.0
    energy_gpu_kwh: float = 0.0
    energy_ram_kwh: float = 0.0
    emissions_kg: float = 0.0

    @property
    def energy_kwh(self) -> float:
        """The sum of the three parts."""
        return self.energy_cpu_kwh + self.energy_gpu_kwh + self.energy_ram_kwh

    @property
    def emissions_rate_kg_per_h(self) -> float:
        """Emissions over runtime; CodeCarbon's own field is in kg per second."""
        return self.emissions_kg / self.runtime_h if self.runtime_h else 0.0

    @classmethod
    def total(cls, parts: Iterable[Self]) -> Self:
        """The sum; exact for the phases of one measurement, in whichever order."""
        parts = list(parts)
        return cls(**{s.name: sum(getattr(p, s.name) for p in parts) for s in fields(cls)})

    def to_metrics(self, prefix: str = "") -> dict[str, float]:
        """The figures as MLflow metrics."""
        names = (
            "runtime_h", "energy_kwh", "energy_cpu_kwh", "energy_gpu_kwh", "energy_ram_kwh",
            "emissions_kg",
        )  # fmt: skip
        return {prefix + name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What turns energy into kilograms, and how the energy was obtained.

    `methods` says for each part (cpu, gpu, ram) how, in words that begin with measured, modelled
    or none.
    """

    g_per_kwh: float
    pue: float = 1.0
    methods: Mapping[str, str] = field(default_factory=dict)

    def kg(self, energy_kwh: float) -> float:
        """Energy x PUE x carbon intensity, in kg CO2e."""
        return energy_kwh * self.pue * self.g_per_kwh / GRAMS_PER_KG

    def modelled(self, part: str) -> bool:
        """True when no sensor has seen this part of the energy."""
        return self.methods[part].startswith("modelled")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one run spent, and what is known about the figures.

    `flags` are remarks that a reader must know (shared GPU, paused process); `faults` are reasons
    why the figures cannot be trusted. `facts` are further figures for the record, such as
    CodeCarbon's own total.
    """

    segments: Sequence[Segment]
    basis: Basis
    flags: Sequence[str] = ()
    faults: Sequence[str] = ()
    facts: Mapping[str, float] = field(default_factory=dict)

    def with_nodes(self, others: "Sequence[Measurement]") -> "Measurement":
        """This node's measurement with those of others added: energies add up, hours do not."""
        segments, flags, faults = list(self.segments), list(self.flags), list(self.faults)
        facts = dict(self.facts)
        for number, other in enumerate(others, 1):
            segments += [replace(segment, node=number) for segment in other.segments]
            flags += [f"node {number}: {flag}" for flag in other.flags]
            faults += [f"node {number}: {fault}" for fault in other.faults]
            if other.basis.methods != self.basis.methods:
                flags.append(f"node {number} is measured in another way: {other.basis.methods}")
            facts |= {k: facts.get(k, 0.0) + v for k, v in other.facts.items() if k != CC_RUNTIME}
        return replace(self, segments=segments, flags=flags, faults=faults, facts=facts)

    def after(self, earlier: "Measurement", times: int = 1) -> "Measurement":
        """This session's measurement with what the run had spent before it was resumed.

        What overlaps with this session is this session, written down before. Flags and faults of
        all sessions hold for the sum; facts, which are one session's, stay this one's.
        """
        began_s = min((segment.started_s for segment in self.segments), default=math.inf)
        before = [s for s in earlier.segments if s.ended_s < began_s + CLOSE_S]
        if not before:
            return self
        known = [f for f in (*earlier.flags, *self.flags) if not f.startswith(RESUMED)]
        often = "once" if times == 1 else f"{times} times"
        flags = [f"{RESUMED}{often}, what lies between sessions is not counted", *known]
        if earlier.basis.methods != self.basis.methods:
            flags.append(f"a session before was measured in another way: {earlier.basis.methods}")
        return replace(
            self,
            segments=[*before, *self.segments],
            flags=list(dict.fromkeys(flags)),
            faults=list(dict.fromkeys([*earlier.faults, *self.faults])),
        )

    def with_fault(self, fault: str) -> "Measurement":
        """The same, with one more reason not to trust it."""
        return replace(self, faults=[*self.faults, fault])

    @property
    def valid(self) -> bool:
        """True when no sanity gate has failed."""
        return not self.faults

    def phases(self) -> dict[str, Footprint]:
        """A footprint for each phase that occurred; they add up to the total to the last digit."""
        names = [name for name in PHASES if any(s.phase == name for s in self.segments)]
        spent = {name: [s for s in self.segments if s.phase == name] for name in names}
        first = {name: [s for s in spent[name] if s.node == 0] for name in names}
        hours = addable([math.fsum(s.runtime_h for s in first[name]) for name in names])
        parts = ("energy_cpu_kwh", "energy_gpu_kwh", "energy_ram_kwh")
        sums = [
            math.fsum(getattr(s, part) for s in spent[name]) for name in names for part in parts
        ]
        kwh = addable(sums)
        rows = [kwh[start : start + len(parts)] for start in range(0, len(kwh), len(parts))]
        kg = addable([self.basis.kg(sum(row)) for row in rows])
        return {
            name: Footprint(
                runtime_h=hours[i], emissions_kg=kg[i], **dict(zip(parts, rows[i], strict=True))
            )
            for i, name in enumerate(names)
        }

    @property
    def total(self) -> Footprint:
        """The sum of the phases."""
        return Footprint.total(self.phases().values())

    @property
    def energy_modelled_share(self) -> float:
        """The part of the energy, 0 to 1, that comes from a model and not from a sensor."""
        total = self.total
        return self._modelled_kwh(total) / total.energy_kwh if total.energy_kwh else 0.0

    @property
    def energy_bounds_kwh(self) -> tuple[float, float]:
        """Between what and what the machine really drew, by published wall-meter comparisons.

        The lower one takes what sensors have seen and half of what is modelled, since software
        never read above a wall meter; the upper one adds the largest published shortfall.
        """
        total = self.total
        low = total.energy_kwh - (1 - LEAST_OF_MODELLED) * self._modelled_kwh(total)
        shortfall = SHORTFALL_GPU if total.energy_gpu_kwh else SHORTFALL_CPU
        return low, total.energy_kwh / (1 - shortfall[1])

    def _modelled_kwh(self, total: Footprint) -> float:
        parts = {
            "cpu": total.energy_cpu_kwh, "gpu": total.energy_gpu_kwh, "ram": total.energy_ram_kwh,
        }  # fmt: skip
        return sum(kwh for part, kwh in parts.items() if self.basis.modelled(part))

    def to_metrics(self) -> dict[str, float]:
        """Totals, bounds and phases as MLflow metrics; those of a phase stand behind its name."""
        total, (low, high) = self.total, self.energy_bounds_kwh
        metrics = total.to_metrics() | {
            "emissions_rate_kg_per_h": total.emissions_rate_kg_per_h,
            "energy_modelled_share": self.energy_modelled_share,
            "energy_low_kwh": low,
            "energy_high_kwh": high,
            "emissions_low_kg": self.basis.kg(low),
            "emissions_high_kg": self.basis.kg(high),
        }
        for name, footprint in self.phases().items():
            metrics |= footprint.to_metrics(f"{name}/")
        return {**metrics, **self.facts}

    def to_tags(self) -> dict[str, str]:
        """How the figures are known, as MLflow tags."""
        tags = {f"energy_{part}_method": how for part, how in self.basis.methods.items()}
        said = {"energy_faults": "; ".join(self.faults), "energy_flags": "; ".join(self.flags)}
        tags |= {"pue": repr(self.basis.pue), "energy_valid": str(self.valid).lower()}
        return tags | {name: text for name, text in said.items() if text}


def addable(amounts: Sequence[float]) -> list[float]:
    """The amounts, rounded to one step so fine that every sum of them is exact.

    The step is a power of two, about 2^-48 of their sum: a relative error below 1e-14, and
    floating-point additions of the results round nothing, in any order and in any language.
    """
    size = math.fsum(abs(amount) for amount in amounts)
    step = math.ldexp(1.0, math.frexp(size)[1] - EXACT_BITS) if math.isfinite(size) else 0.0
    if not step:  # nothing, or no amounts at all, which `gates` will say
        return list(amounts)
    return [round(amount / step) * step for amount in amounts]
