"""What a study has spent, all its workers together, against what it may spend.

It joins this process's meter, the runs of the others in the store, and the price of a trial. What
is spent is measured; what the next trial takes is modelled (`budget.Price`); hours are those since
this command began, since a timeout is the matter of whoever waits.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from green_tune import worker
from green_tune.budget import ZERO, Amount, Budget, Price, Sample
from green_tune.config import SweepConfig
from green_tune.footprint import OVERHEAD, SECONDS_PER_HOUR
from green_tune.meter import Meter
from green_tune.results import REUSED, SESSION_KINDS, WORKER, RunRecord

READ_S = 0.2  # between looks at the meter, where there is a budget to keep to
LOOK_S = 30.0  # and at what other workers have spent

Records = Sequence[RunRecord]


class Ledger:
    """The account book of a sweep; `find` gives the trials and the sessions of the study."""

    def __init__(
        self, config: SweepConfig, meter: Meter, find: Callable[[], tuple[Records, Records]]
    ) -> None:
        self._budget = Budget(
            emissions_kg=config.emissions_budget_kg or math.inf,
            energy_kwh=config.energy_budget_kwh or math.inf,
            runtime_h=config.timeout_h or math.inf,
        )
        self._meter = meter
        self._find = find
        self._began_s = time.monotonic()
        self._read_s = self._looked_s = self._began_s
        self._elsewhere = ZERO
        self._price = Price()

    def look(self) -> None:
        """Brings what the others have spent, and the price of a trial, up to date."""
        self._looked_s = time.monotonic()
        trials, sessions = self._find()
        self._price = Price.of([_sample(record) for record in trials if _is_sample(record)])
        others = [record for record in trials if record.tags.get(WORKER) != worker.this()]
        # No figures are in this session's own run before its end; the study's, which whoever
        # joined it may have opened again as its own, has those of the first session.
        self._elsewhere = sum((self._spent_by(each) for each in (*others, *sessions)), ZERO)

    def spent(self) -> Amount:
        """By now, and by trials under way elsewhere as far as they are expected to go."""
        here = Amount(emissions_kg=self._meter.spent_kg, energy_kwh=self._meter.spent_kwh)
        hours = (time.monotonic() - self._began_s) / SECONDS_PER_HOUR
        return replace(here + self._elsewhere, runtime_h=hours)

    def refuse(self, values: Mapping[str, float]) -> str:
        """Why a trial must not start: it is expected to break a budget; empty where it may.

        Without values: why none can start, because nothing is left.
        """
        if self._budget == Budget():
            return ""
        if not values:
            self.look()
        return self._budget.over(self.spent(), self.expected(values) if values else ZERO)

    def expected(self, values: Mapping[str, float]) -> Amount:
        """What a trial is expected to take; nothing while nothing is known."""
        return self._price.expected(values) or ZERO

    def over(self, reserved_kwh: float = 0.0) -> str:
        """Why a trial under way must end now; `reserved_kwh` is what its end still takes."""
        if self._budget == Budget():
            return ""
        if time.monotonic() - self._read_s > READ_S:  # the meter's own second is a long time
            self._meter.read()
            self._read_s = time.monotonic()
        if time.monotonic() - self._looked_s > LOOK_S:  # others spend as well
            self.look()
        kg = self._meter.basis.kg(reserved_kwh)
        reserved = Amount(emissions_kg=kg, energy_kwh=reserved_kwh)
        return self._budget.over(self.spent(), reserved, "its last validation")

    def _spent_by(self, record: RunRecord) -> Amount:
        """A run of another worker, or of an earlier session."""
        if REUSED in record.tags:
            return ZERO
        prefix = OVERHEAD if record.kind in SESSION_KINDS else ""
        figures = record.metrics
        if f"{prefix}energy_kwh" in figures:
            return _amount(record, prefix)
        return ZERO if prefix else self.expected(_values(record))


def _amount(record: RunRecord, prefix: str = "") -> Amount:
    names = ("emissions_kg", "energy_kwh", "runtime_h")
    return Amount(**{name: record.metrics.get(prefix + name, 0.0) for name in names})


def _is_sample(record: RunRecord) -> bool:
    """A trial that trained and was measured; one that was taken over tells a price as well."""
    measured = "energy_kwh" in record.metrics and bool(record.course)
    return measured and record.status == "FINISHED" and record.course[-1].progress > 0


def _sample(record: RunRecord) -> Sample:
    progress = record.course[-1].progress if record.ended_early else 1.0
    return Sample(values=_values(record), amount=_amount(record), progress=progress)


def _values(record: RunRecord) -> dict[str, float]:
    """Its sizes, by which a trial is priced."""
    names = ("batch_size", "accumulation_steps", "epochs", "lora_rank")
    return {name: float(record.params[name]) for name in names if name in record.params}
