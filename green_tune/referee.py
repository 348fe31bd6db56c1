"""Who ends a trial before its schedule, and which of its adapters on the way are worth keeping.

It judges one trial against those before it (`dominance`) and against the budgets (`ledger`), by
its validations. It does not know how a training is ended, nor where adapters go.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile

from green_tune import dominance
from green_tune.dominance import Bound, Verdict
from green_tune.results import Course, Evaluation, RunRecord

Over = Callable[[int], str]


class Referee:
    """The judge of one trial; without a bound no trial is ended for being dominated.

    `others` are the study's other trials as they stood when this one began; `over` says why the
    trial must end for a budget's sake, given how many validations it has paid for.
    """

    def __init__(self, others: Sequence[RunRecord], bound: Bound | None, over: Over) -> None:
        done = [record for record in others if record.status == "FINISHED" and record.course]
        self._finished = [record.course for record in done if not record.ended_early]
        self._archive = {_name(record): _results(record) for record in done}
        self._bound = bound
        self._over = over
        self._seen = 0
        self.verdict: Verdict | None = None

    def ends(self, course: Course) -> str:
        """Why the trial ends here, or "": a budget at any step, dominance at a validation."""
        if why := self._over(len(course) - 1):
            return why
        if self._bound and len(course) > self._seen:
            self._seen = len(course)
            found = dominance.judge(course, self._finished, self._archive, bound=self._bound)
            self.verdict = found
        return str(self.verdict) if self.verdict else ""

    def keeps(self, course: Course) -> bool:
        """Whether the newest validation is on the front by now."""
        newest = course[-1]
        others = (point for each in self._archive.values() for point in each if point.step)
        before = takewhile(lambda point: point is not newest, course)
        return not any(_beats(point, newest) for point in (*others, *before) if point.step)

    def imputed(self, course: Course) -> tuple[float, float] | None:
        """What a trial that was ended would have reached, for the sampler."""
        return dominance.imputed(course, self._finished) if course else None


def _results(record: RunRecord) -> Course:
    """Its validations, as `points` has them: nothing before the first step, its end in full."""
    *before, last = record.course
    kg = record.metrics.get("emissions_kg", last.emissions_kg)
    return [point for point in (*before, replace(last, emissions_kg=kg)) if point.step]


def _beats(one: Evaluation, other: Evaluation) -> bool:
    return one.val_loss <= other.val_loss and one.emissions_kg <= other.emissions_kg


def _name(record: RunRecord) -> str:
    return f"#{record.tags.get('green_tune.trial', record.run_id[:8])}"
