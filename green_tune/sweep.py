"""A sweep: trial after trial, until the study has them all, a budget is spent, or all fail.

It knows in which order things happen. Which trial is next is `study`'s affair, what may be spent
`ledger`'s; how a trial is trained, measured and tracked is the `experiment` that it is given.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from green_tune import stop
from green_tune.errors import DoesNotFit, RunFailed
from green_tune.job import Job
from green_tune.space import Space
from green_tune.study import Outcome, Refuse, Settle, Study, Trial

log = logging.getLogger(__name__)

FAILURES = 3  # all of the first trials so many failed: the rest would fail alike

Experiment = Callable[[Trial], Outcome]


def run_sweep(  # noqa: PLR0913 - what a sweep is, each by its name
    study: Study,
    trials: int,
    experiment: Experiment,
    settle: Settle,
    refuse: Refuse,
    *,
    alike: bool = True,
    title: Callable[[Trial], str] = lambda trial: f"trial {trial.number}",
) -> str:
    """Runs trials until the study has as many as were asked for, failed ones included.

    A trial that fails as a run (it diverged, ran out of memory, was not measured), or is known to
    have no room beforehand, is a FAIL of the study and the sweep goes on; anything else ends the
    sweep, and the trial is queued again. Trials are `alike` where what fails one fails others.
    Returns why the sweep ended before, and "" where it did not.

    Raises:
        RunFailed: the first trials, which are alike, all failed.
    """
    while True:
        stop.check()
        trial = study.claim(trials, settle, refuse)
        if isinstance(trial, str):
            return trial
        try:
            study.tell(trial, experiment(trial))
        except DoesNotFit as error:  # a result: nothing was started
            study.fail(trial, str(error))
        except RunFailed as error:
            log.warning("%s failed: %s", title(trial), error)
            study.fail(trial, str(error))
            if alike:
                _check_any_succeeds(study)
        except BaseException as error:
            with stop.held():
                study.give_up(trial, f"{type(error).__name__}: {error}", settle)
            raise


def configured(job: Job, trial: Trial) -> Job:
    """The job of a trial."""
    return job.with_config(replace(job.config, **trial.values))


def identity(job: Job, space: Space) -> dict[str, str]:
    """What must be equal for two trials to be compared in one study."""
    fixed = {k: v for k, v in job.config.to_params().items() if k not in space}
    for name in ("gpu", "seed", "resume", "revision", "checkpoint_minutes", "quality_examples"):
        del fixed[name]
    varied = {name: str(dimension) for name, dimension in space.items()}
    found = {"model": job.source.name, "commit": job.commit, "data": job.data.digest}
    return fixed | varied | found | {"device": job.device.gpu_type}


def nothing_settled(_: str) -> Outcome | None:
    """For studies whose lost trials have no results anywhere."""
    return None


def everything_admitted(_: Mapping[str, Any]) -> str:
    """For sweeps without a budget."""
    return ""


def _check_any_succeeds(study: Study) -> None:
    failed = study.failures()
    if failed and len(failed) >= FAILURES:
        raise RunFailed(f"the first {len(failed)} trials all failed, the last one: {failed[-1]}")
