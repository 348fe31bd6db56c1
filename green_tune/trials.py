"""One trial of a study as a nested, measured run; or an earlier run of the same config instead.

It joins the trial with its run in the store: what was reused, what was cut off before, who ended
it and what it came to. Which trial is next, `study` knows; how one is trained, `experiment`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from types import MappingProxyType
from typing import NoReturn

from green_tune import earlier, quality
from green_tune.bill import measured
from green_tune.dominance import Bound
from green_tune.errors import GreenTuneError
from green_tune.evidence import Known
from green_tune.experiment import Judge, fingerprint, run_experiment
from green_tune.job import Job
from green_tune.ledger import Ledger
from green_tune.meter import Meter
from green_tune.query import Query
from green_tune.referee import Referee
from green_tune.results import (
    EVALUATIONS,
    RETRY_OF,
    REUSED,
    SAVED_KG,
    STUDY,
    TRIAL,
    RunRecord,
)
from green_tune.run import Run
from green_tune.study import Outcome, Study, Trial
from green_tune.tracking import NOTE, Tracker
from green_tune.training import Bench


class Trials:
    """Runs the trials of one study in this process, one after the other.

    They are runs of one `kind`: trials, of a sweep, or the cells of a grid. A cell is named by
    `title`, may need another base or other data than the cell before it, and a failure to load
    them is its own.
    """

    def __init__(  # noqa: PLR0913 - what a trial needs, each by its name
        self,
        *,
        study: Study,
        name: str,
        tracker: Tracker,
        parent: Run,
        bench: Bench,
        meter: Meter,
        ledger: Ledger,
        bound: Bound | None,
        reuse: bool,
        show: Callable[[RunRecord], None],
        kind: str = "trial",
        title: Callable[[Trial], str] | None = None,
    ) -> None:
        self._study = study
        self._name = name
        self._tracker = tracker
        self._parent = parent
        self._meter = meter
        self._ledger = ledger
        self._bound = bound
        self._reuse = reuse
        self._show = show
        self._kind = kind
        self._title = title
        self._bench = bench
        self._known: list[RunRecord] | None = None  # once it was read

    def repeating(self, study: Study) -> "Trials":
        """For the trials that are run again on other seeds, in a study of their own."""
        twin = copy(self)
        twin._study, twin._kind, twin._bound = study, "repeat", None
        return twin

    def run(self, job: Job, trial: Trial) -> Outcome:
        """Measures a trial, or takes over what was measured of the same config.

        Raises:
            RunFailed: it diverged, did not fit, or could not be measured.
        """
        same = self._same(job)
        run_id = self._taken_over(job, trial, same) if same else self._measured(job, trial)
        record = self._tracker.get(run_id)
        if self._known is not None:
            self._known.append(record)
        self._show(record)
        self._ledger.look()
        return self._outcome(record)

    def leave(
        self,
        trial: Trial,
        tags: Mapping[str, str],
        params: Mapping[str, str],
        error: GreenTuneError,
    ) -> NoReturn:
        """Leaves a run that says why a trial never began, and raises that."""
        with self._run(trial, tags) as run:
            run.log_params(params)
            raise error

    def settle(self, run_id: str) -> Outcome | None:
        """What a trial had come to whose worker died; its run is closed, with what it spent."""
        record = self._tracker.bury(run_id)
        done = record and record.status == "FINISHED" and "val_loss" in record.metrics
        trusted = record and record.tags.get("energy_valid") == "true"
        return self._outcome(record) if record and done and trusted else None

    def others(self) -> list[RunRecord]:
        """The study's trials as they stand in the store."""
        return self._tracker.find(Query(study=self._name, kinds=(self._kind,)))

    def _measured(self, job: Job, trial: Trial) -> str:
        self._warm(job, trial)
        if self._known is None:
            self._known = self._tracker.newest(job.device.gpu_type)
        referee = Referee(self.others(), self._bound, self._over)
        with (
            self._run(trial) as run,
            self._meter.account(),
            measured(job, run, self._meter) as bill,
        ):
            repeats = self._kind != "trial"  # whose validations are no points of the front
            judge = (
                Judge(ends=referee.ends)
                if repeats
                else Judge(ends=referee.ends, keeps=referee.keeps)
            )
            known = Known(records=self._known)
            run_experiment(job, run, bill, bench=self._bench, judge=judge, known=known)
            if referee.verdict:
                run.set_tags({SAVED_KG: f"{referee.verdict.saved_kg:.6g}"})
        return run.id

    def _warm(self, job: Job, trial: Trial) -> None:
        """Loads what a trial needs in the account that all share."""
        try:
            with self._meter.phase("setup"):
                if self._kind == "cell":
                    quality.prepare(job)
                    self._bench.load(job)
                self._bench.warm(job)
        except GreenTuneError as error:
            if self._kind == "cell":
                self.leave(trial, _found(job), job.config.to_params(), error)
            raise

    @contextmanager
    def _run(self, trial: Trial, more: Mapping[str, str] = MappingProxyType({})) -> Iterator[Run]:
        """The run of a trial; the study knows it before anything else is done."""
        number, title = self._titled(trial)
        tags = {STUDY: self._name, TRIAL: number} | dict(more)
        if trial.retry_of:
            tags |= {RETRY_OF: trial.retry_of}
        with self._tracker.run(self._kind, title, tags=tags, parent=self._parent) as run:
            self._study.note(trial, run.id)
            yield run

    def _titled(self, trial: Trial) -> tuple[str, str]:
        """The number of the trial that a run is of, and its name."""
        if self._title:
            return str(trial.number), self._title(trial)
        if self._kind == "trial":
            return str(trial.number), f"#{trial.number} {self._name}"
        number = str(trial.values["trial"])
        return number, f"#{number} seed {trial.values['seed']} {self._name}"

    def _over(self, validations: int) -> str:
        """Why the trial under way must end; one more validation will still have to be paid."""
        return self._ledger.over(self._meter.spent_in("eval")[0] / max(1, validations))

    def _same(self, job: Job) -> RunRecord | None:
        if not self._reuse:
            return None
        found = self._tracker.find(Query(fingerprint=fingerprint(job)))
        scored = [record for record in found if earlier.has_quality(record)]
        return (job.config.quality_examples and earlier.usable(scored)) or earlier.usable(found)

    def _taken_over(self, job: Job, trial: Trial, same: RunRecord) -> str:
        """A run with the figures of an earlier one, which cost nothing now."""
        scored = job.config.quality_examples > 0
        metrics, course = earlier.as_trial(same, self._meter.basis, scored=scored)
        note = f"taken over from run {same.run_id}, which was the same config; its adapter is there"
        more = {REUSED: same.run_id, EVALUATIONS: course, NOTE: note, "pue": repr(job.config.pue)}
        kept = {k: v for k, v in same.tags.items() if k.startswith(earlier.TAKEN_OVER)}
        with self._run(trial, kept | job.intensity.to_tags() | more) as run:
            run.log_params(job.config.to_params() | job.plan.to_params())
            run.log_metrics(metrics)
        return run.id

    def _outcome(self, record: RunRecord) -> Outcome:
        """Objectives as they are; what was ended early is imputed for the sampler."""
        imputed = None
        if record.ended_early and self._kind != "cell":  # no sampler learns of cells
            others = [other for other in self.others() if other.run_id != record.run_id]
            imputed = Referee(others, None, lambda validations: "").imputed(record.course)
        return Outcome(
            val_loss=record.metrics["val_loss"],
            emissions_kg=record.metrics["emissions_kg"],
            imputed=imputed,
        )


def _found(job: Job) -> dict[str, str]:
    """What a run that never began says of where it would have run."""
    return {
        "base_model": job.source.name,
        "gpu_type": job.device.gpu_type,
        "device": str(job.device),
        "data_digest": job.data.digest,
    }
