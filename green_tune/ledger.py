"""What a study has spent, all its workers together, against what it may spend.

It joins this process's meter, the runs of the others in the store, and the price of a trial. What
is spent is measured; what the next trial takes is modelled (`budget.Price`); hours are those since
this command began, since a timeout is the matter of whoever waits.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from green_tune import worker
from green_tune.budget import ZERO, Amount, Budget, Price, Sample
from green_tune.config import SweepConfig
from green_tune.footprint import OVERHEAD, SECONDS_PER_HOUR
from green_tune.meter import Meter
from green_tune.results import REUSED, SESSION_KINDS, WORKER, RunRecord

READ_S = 0.2  # between looks at the meter, where there is a budget to keep to
LOOK_S = 30.0  # and at what other workers have spent

Records = Sequence[RunRecord]
Works = Mapping[tuple[str, str], float]  # by model and task


class Forecast(Protocol):
    """What a trial will cost."""

    def expected(self, values: Mapping[str, Any]) -> Amount | None:
        """By what is known of it; None while nothing is known of any."""


def price(trials: Records) -> Forecast:
    """What a trial of a sweep costs, by its sizes and by the trials so far."""
    return Price.of([_sample(record) for record in trials if _is_sample(record)])


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What a cell of a grid costs: its modelled work, by its model and task, times a rate.

    The energy of a training goes with its work only roughly: a small model leaves a device idle. So
    the largest rate that was measured counts, and of larger cells it rather says too much.
    """

    works: Works
    most: Amount = ZERO  # for a unit of work

    @classmethod
    def of(cls, works: Works, trials: int, records: Records) -> "Rate":
        """By the runs so far; a cell of several trials by the mean of those that it has."""
        spent: dict[tuple[str, ...], list[Amount]] = defaultdict(list)
        for record in (record for record in records if _is_sample(record)):
            cell = tuple(record.params.get(name, "") for name in ("model", "task", "seed"))
            sample = _sample(record)
            spent[cell].append(sample.amount.times(1 / sample.progress))
        rates = [
            sum(each, ZERO).times(trials / len(each) / works[model, task])
            for (model, task, _), each in spent.items()
            if works.get((model, task))
        ]
        names = ("emissions_kg", "energy_kwh", "runtime_h")
        most = {name: max((getattr(each, name) for each in rates), default=0.0) for name in names}
        return cls(works=works, most=Amount(**most))

    def expected(self, values: Mapping[str, Any]) -> Amount | None:
        """The modelled cost of a cell; nothing while no cell was measured."""
        work = self.works.get((values.get("model", ""), values.get("task", "")), 0.0)
        return self.most.times(work)


class Ledger:
    """The account book of a sweep; `find` gives the trials and the sessions of the study.

    `learn` makes a forecast of what the next trial costs, and `what` is how that one is called. A
    study that is a part of another's is kept `within` the book of that one: the budgets are the
    whole's, and so is what has been spent.
    """

    def __init__(
        self,
        config: SweepConfig,
        meter: Meter,
        find: Callable[[], tuple[Records, Records]],
        *,
        learn: Callable[[Records], Forecast] = price,
        what: str = "the next trial",
        within: "Ledger | None" = None,
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
        self._learn = learn
        self._what = what
        self._within = within
        self._price = learn(())

    def look(self) -> None:
        """Brings what the others have spent, and the price of a trial, up to date."""
        self._looked_s = time.monotonic()
        trials, sessions = self._find()
        self._price = self._learn(trials)
        if self._within:
            self._within.look_again()
            return
        others = [record for record in trials if record.tags.get(WORKER) != worker.this()]
        # No figures are in this session's own run before its end; the study's, which whoever
        # joined it may have opened again as its own, has those of the first session.
        self._elsewhere = sum((self._spent_by(each) for each in (*others, *sessions)), ZERO)

    def look_again(self) -> None:
        """As `look`, where the last one was a while ago."""
        if time.monotonic() - self._looked_s > LOOK_S:
            self.look()

    def spent(self) -> Amount:
        """By now, and by trials under way elsewhere as far as they are expected to go."""
        if self._within:
            return self._within.spent()
        here = Amount(emissions_kg=self._meter.spent_kg, energy_kwh=self._meter.spent_kwh)
        hours = (time.monotonic() - self._began_s) / SECONDS_PER_HOUR
        return replace(here + self._elsewhere, runtime_h=hours)

    def refuse(self, values: Mapping[str, Any]) -> str:
        """Why a trial must not start: it is expected to break a budget; empty where it may.

        Without values: why none can start, because nothing is left.
        """
        if self._budget == Budget():
            return ""
        if not values:
            self.look()
        expected = self.expected(values) if values else ZERO
        return self._budget.over(self.spent(), expected, self._what)

    def expected(self, values: Mapping[str, Any]) -> Amount:
        """What a trial is expected to take; nothing while nothing is known."""
        return self._price.expected(values) or ZERO

    def over(self, reserved_kwh: float = 0.0) -> str:
        """Why a trial under way must end now; `reserved_kwh` is what its end still takes."""
        if self._budget == Budget():
            return ""
        if time.monotonic() - self._read_s > READ_S:  # the meter's own second is a long time
            self._meter.read()
            self._read_s = time.monotonic()
        self.look_again()  # others spend as well
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
        if prefix or record.status != "RUNNING":  # a cell whose base cannot be loaded never began
            return ZERO
        return self.expected(_values(record))


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


def _values(record: RunRecord) -> dict[str, Any]:
    """Its sizes, by which a trial is priced; and its model and task, by which a cell is."""
    names = ("batch_size", "accumulation_steps", "epochs", "lora_rank")
    sizes = {name: float(record.params[name]) for name in names if name in record.params}
    return sizes | {n: record.params[n] for n in ("model", "task") if n in record.params}
