"""A quote: what a run will take, with an interval, what it rests on, and how right it was.

Pure values over evidence. While the run goes on, `expected_kwh` forecasts it again from what it has
spent; when it has ended, `errors` says how far off the quote was.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from green_tune import conformal, effort, evidence, scoreboard
from green_tune.budget import Amount
from green_tune.conformal import Width
from green_tune.effort import Texts, Work
from green_tune.evidence import ASSUMED, OWN, Evidence, Known, is_of
from green_tune.footprint import Basis, Footprint
from green_tune.job import Job
from green_tune.pace import Phases, total

TRUST = 0.05  # of a phase, that counts as done as quoted while it goes on


@dataclass(frozen=True, kw_only=True)
class Quote:
    """What a run is expected to take; energies and kilograms are of the same relative width."""

    evidence: Evidence
    runtime: Width
    energy: Width
    basis: Basis

    @classmethod
    def of(cls, evidence: Evidence, known: Known, job: Job, basis: Basis) -> Self:
        """Evidence with an interval from past errors of its kind on this device."""
        here = [record for record in known.records if is_of(record, job.device)]
        widths = {
            figure: conformal.width(
                scoreboard.ratios(here, evidence=evidence.layer, figure=figure),
                ASSUMED[evidence.layer],
            )
            for figure in ("runtime", "energy")
        }
        return cls(evidence=evidence, basis=basis, **widths)

    @property
    def amount(self) -> Amount:
        """Hours, kWh and kg CO2e of all phases."""
        spent = total(self.evidence.phases)
        return Amount(
            runtime_h=spent.runtime_h,
            energy_kwh=spent.energy_kwh,
            emissions_kg=self.basis.kg(spent.energy_kwh),
        )

    def to_metrics(self) -> dict[str, float]:
        """The figures and their intervals as MLflow metrics."""
        found = with_intervals(self.amount, self.runtime, self.energy)
        return {f"quote.{name}": figure for name, figure in found.items()}

    def to_tags(self) -> dict[str, str]:
        """What it rests on, as MLflow tags."""
        note = f"{self.evidence.note}; {self.energy.note}"
        return {"quote.evidence": self.evidence.layer, "quote.note": note}

    def errors(self, actual: Footprint) -> dict[str, float]:
        """Actual over quoted, minus 1, of time and energy; none of what was said to be nothing."""
        said = self.amount
        pairs = {
            "runtime": (actual.runtime_h, said.runtime_h),
            "energy": (actual.energy_kwh, said.energy_kwh),
        }
        return {f"quote.{name}_error": a / b - 1 for name, (a, b) in pairs.items() if b}


def with_intervals(amount: Amount, runtime: Width, energy: Width) -> dict[str, float]:
    """An amount's figures by name, each with the ends of its interval."""
    figures: dict[str, float] = {}
    for name, unit, figure, width in (
        ("runtime", "h", amount.runtime_h, runtime),
        ("energy", "kwh", amount.energy_kwh, energy),
        ("emissions", "kg", amount.emissions_kg, energy),
    ):
        low, high = width.interval(figure)
        ends = {f"{name}_low_{unit}": low, f"{name}_high_{unit}": high}
        figures |= {f"{name}_{unit}": figure} | ends
    return figures


def foretell(
    job: Job, texts: Texts, known: Known, basis: Basis, fingerprint: str, *, kind: str
) -> tuple[Work, Quote] | None:
    """The work and the quote of a run of a `kind` (train, trial or cell).

    None where nothing can be said: a model of unknown shape, or several processes together.

    Raises:
        ConfigError: the table has no row for the device, and nothing else is known of it.
    """
    if job.shape is None or job.rank.world > 1:
        return None
    work = effort.work(
        job.config, job.plan, job.shape, texts, kind=job.device.kind, warmed=kind not in OWN
    )
    found = evidence.find(job, work, known, fingerprint, kind=kind)
    return work, Quote.of(found, known, job, basis)


def expected_kwh(
    quoted: Phases, spent_kwh: Mapping[str, float], done: Mapping[str, float]
) -> float:
    """What a run under way will have taken in the end.

    A phase of which a part is `done` (0 to 1) goes on as it went so far; the quote counts as much
    as a small part more of it, so that it decides alone where nothing is done, and hardly any more
    after that.
    """
    names = {*quoted, *spent_kwh}
    return sum(
        _phase_kwh(
            quoted.get(name, Amount()).energy_kwh, spent_kwh.get(name, 0.0), done.get(name, 1.0)
        )
        for name in names
    )


def _phase_kwh(quoted: float, spent: float, done: float) -> float:
    if done >= 1:
        return spent
    if not done:  # what it has spent so far says nothing of how far it is
        return max(spent, quoted)
    return max(spent, (spent + TRUST * quoted) / (done + TRUST))


def together(quotes: Sequence[tuple[Quote, float]]) -> tuple[Amount, Width, Width]:
    """Several runs, each so many times: what all take, and the widths of time and energy.

    Their errors are taken to be one and the same: a machine that is slower than was thought is so
    for all of them. So the widths do not shrink with their number, and err towards wide.
    """
    spent = sum((quote.amount.times(times) for quote, times in quotes), Amount())
    if not quotes:
        return spent, Width(factor=1.0), Width(factor=1.0)
    return (
        spent,
        _widest([(quote.runtime, quote.amount.runtime_h * times) for quote, times in quotes]),
        _widest([(quote.energy, quote.amount.energy_kwh * times) for quote, times in quotes]),
    )


def _widest(widths: Sequence[tuple[Width, float]]) -> Width:
    """The mean of the widths' logarithms by what each weighs; known as the least known of them."""
    weight = sum(amount for _, amount in widths) or 1.0
    mean = sum(math.log(width.factor) * amount for width, amount in widths) / weight
    return Width(factor=math.exp(mean), errors=min(width.errors for width, _ in widths))
