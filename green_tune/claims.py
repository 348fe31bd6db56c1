"""The study's claims, each with a verdict on a user's own runs.

Supported and contradicted are said at 95 %: where a claim is false it is supported in at most one
store of twenty, and where it is true it is contradicted in at most one of twenty. All else is not
enough evidence. What each claim takes is in `rivals` and `knobs`, the statistics in `effects` and
`counts`; `benchmarks/verdicts.py` counts how often they are wrong.
"""

from collections.abc import Sequence

from green_tune import columns, knobs, rivals
from green_tune.document import Finding
from green_tune.results import RunRecord

CLAIMS = (
    rivals.rates,
    rivals.totals,
    knobs.batch_size,
    knobs.accumulation,
    knobs.uncorrelated,
    knobs.epochs,
)


def claims(records: Sequence[RunRecord]) -> list[Finding]:
    """A verdict for each claim of the study, in their fixed order.

    Of the records those are used that finished and that nothing outside of their config stopped
    early. Emissions are compared within a task, data set, base model and carbon intensity, losses
    on one GPU as well. Texts are Markdown; `settle` is empty where a claim is not open.
    """
    runs = columns.read(records)
    return [claim(runs) for claim in CLAIMS]
