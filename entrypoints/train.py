"""`mlflow run . -e train`: one LoRA fine-tuning run, measured and tracked."""

import logging
from typing import TYPE_CHECKING

import click

from entrypoints.elsewhere import quoted_elsewhere
from entrypoints.options import launchers_run, options_of, run
from green_tune.config import TrainConfig

if TYPE_CHECKING:
    from green_tune.checkpoint import Checkpoint
    from green_tune.job import Job
    from green_tune.meter import Meter
    from green_tune.tracking import Tracker

log = logging.getLogger(__name__)


@click.command(help="Fine-tune one LoRA adapter; measure and track it.")
@options_of(TrainConfig)
def train(**asked: str) -> None:
    """Checks what was asked, and only then imports what is heavy."""
    run(lambda: _train(asked))


def _train(asked: dict[str, str]) -> None:
    from green_tune import job as jobs

    with quoted_elsewhere("train", asked):
        job = jobs.prepare(TrainConfig.parse(asked))

    if not job.rank.writes:
        _follow(job)
        return

    from green_tune import checkpoint
    from green_tune.meter import Meter

    kept = checkpoint.claim(job)
    with Meter.of(job) as meter:
        meter.open()  # from here on what is spent, imports included, is the run's
        meter.keep(kept.run_id or launchers_run())
        from green_tune import store
        from green_tune.bill import measured
        from green_tune.tracking import Tracker

        tracker = Tracker(store.tracking_uri())
        _check_there(tracker, kept, meter)
        name = f"{job.source.name}-{job.task.name}-{job.device.gpu_type}"
        opened = (
            tracker.resumed(kept.run_id) if kept.run_id else tracker.run("train", name, asked=asked)
        )
        with (
            kept.until_the_end(),
            opened as current,
            measured(job, current, meter) as bill,
        ):
            from green_tune import report, views  # these, and torch, with the run and its bill open
            from green_tune.evidence import Known
            from green_tune.experiment import run_experiment

            known = Known(records=tracker.newest(job.device.gpu_type))
            run_experiment(job, current, bill, kept, known=known)
    click.echo(report.run_summary(tracker.get(current.id)))
    link = views.run_link(tracker.uri, current.experiment_id, current.id)
    click.echo(views.where(tracker.uri, link))


def _check_there(tracker: "Tracker", kept: "Checkpoint", meter: "Meter") -> None:
    """A run that somebody has deleted is not gone on with."""
    if not kept.run_id or tracker.has(kept.run_id):
        return
    from green_tune import heartbeat

    log.warning("run %s is no longer in the store: the training starts anew", kept.run_id)
    meter.keep(launchers_run())
    heartbeat.set_aside(kept.run_id)  # our own by now, beside those of the sessions before
    heartbeat.forget(kept.run_id)
    kept.remove()


def _follow(job: "Job") -> None:
    """One of several processes that torchrun started: it has no run and no screen of its own."""
    if not job.rank.measures:
        from green_tune.experiment import follow

        follow(job, None)
        return

    from green_tune.meter import Meter

    with Meter.of(job) as meter:
        meter.open()
        from green_tune.experiment import follow

        follow(job, meter)


if __name__ == "__main__":
    train()
