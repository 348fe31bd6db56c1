"""What came of quotes: each figure that was said before a run began, beside what it came to.

Pure functions over records. How a quote is made is `evidence`; what its outcomes say together is
`scoreboard`. What came is the quoted figure times its noted error: a comparison may have cut its
records' own figures to what all runs did.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from green_tune.results import REUSED, RunRecord

Figure = Literal["energy", "runtime"]
UNITS: Mapping[Figure, str] = {"energy": "kwh", "runtime": "h"}
EVIDENCE = {  # the best first, with how a reader is told
    "same": "the same config",
    "fit": "a fit to this store",
    "probe": "a probe",
    "table": "the table of GPUs",
}
ON_A_CPU = "assumed rates"  # what the table is for a CPU, which has no row in it
UNKNOWN = "unknown"
NOT_AS_QUOTED = "that did not end as quoted (stopped, failed or resumed)"
BESIDE = "that shared their machine with other measured runs"
DISTRUSTED = "by their energy, which is not trusted"
PENDING = ("RUNNING", "SCHEDULED")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One figure of one quote and what came of it, both in kWh or both in hours.

    `low` and `high` are NaN where the quote had no interval.
    """

    record: RunRecord
    said: float
    low: float
    high: float
    came: float

    @property
    def evidence(self) -> str:
        """What the quote rests on."""
        return evidence(self.record)

    @property
    def ratio(self) -> float:
        """What came, divided by what was said; positive and finite."""
        return self.came / self.said

    @property
    def off(self) -> float:
        """How far what came is from what was said, as a share of that."""
        return abs(self.ratio - 1)

    @property
    def held(self) -> bool | None:
        """Whether it came out within the quote's interval; None where there was none."""
        return self.low <= self.came <= self.high if math.isfinite(self.low + self.high) else None


def evidence(record: RunRecord) -> str:
    """What a run's quote rests on: one of `EVIDENCE`, or unknown."""
    named = record.tags.get("quote.evidence", "")
    return named if named in EVIDENCE else UNKNOWN


def spoken(record: RunRecord) -> str:
    """What a run's quote rests on, as a reader is told."""
    named = evidence(record)
    if named == "table" and record.tags.get("gpu_type") == "cpu":
        return ON_A_CPU
    return EVIDENCE.get(named, record.tags.get("quote.evidence", ""))


def known(records: Iterable[RunRecord], figure: Figure) -> list[Outcome]:
    """The outcomes of those quotes that have one, the newest run's last."""
    found = [each for record in records if (each := _outcome(record, figure))]
    return sorted(found, key=lambda each: (each.record.started, each.record.run_id))


def unknown(records: Iterable[RunRecord]) -> dict[str, int]:
    """How many quotes have no outcome, by why; those still to come are not among them."""
    return dict(Counter(why for record in records if (why := _missing(record))))


def _outcome(record: RunRecord, figure: Figure) -> Outcome | None:
    """None where a run has no quote of its own, or its error is not known or not trusted.

    Nor beside another measured run, which no quote foresees: it takes longer for half the energy.
    """
    said, low, high = (_quoted(record, figure, end) for end in ("", "_low", "_high"))
    error = record.metrics.get(f"quote.{figure}_error", math.nan)
    vain = REUSED in record.tags or record.shared or (figure == "energy" and _is_distrusted(record))
    if vain or not (0 < said < math.inf and -1 < error < math.inf):
        return None
    return Outcome(record=record, said=said, low=low, high=high, came=said * (1 + error))


def _quoted(record: RunRecord, figure: Figure, end: str = "") -> float:
    return record.metrics.get(f"quote.{figure}{end}_{UNITS[figure]}", math.nan)


def _missing(record: RunRecord) -> str:
    """Why a quote has no outcome; empty where it has one, or there is no quote, or no end yet."""
    quoted = any(math.isfinite(_quoted(record, figure)) for figure in UNITS)
    if not quoted or REUSED in record.tags or record.status in PENDING:
        return ""
    if record.shared:
        return BESIDE
    if not any(_outcome(record, figure) for figure in UNITS):
        return NOT_AS_QUOTED
    return DISTRUSTED if _is_distrusted(record) else ""


def _is_distrusted(record: RunRecord) -> bool:
    return record.tags.get("energy_valid") == "false"
