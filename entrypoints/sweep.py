"""`mlflow run . -e sweep`: an Optuna study over loss and emissions, its trials nested runs."""

from dataclasses import fields, replace
from datetime import datetime
from typing import TYPE_CHECKING

import click

from entrypoints.options import launchers_run, options_of, run
from green_tune import space as spaces
from green_tune.config import SweepConfig, TrainConfig
from green_tune.errors import ConfigError, RunFailed

if TYPE_CHECKING:
    from green_tune.job import Job
    from green_tune.meter import Meter
    from green_tune.sweep import Space


@click.command(
    help="Search the trade-off between validation loss and emissions. A hyperparameter with a "
    "range is searched: narrow it (1e-5..1e-3), list its values (8,16), or pin it (8)."
)
@options_of(TrainConfig, SweepConfig, defaults=spaces.defaults())
def sweep(**asked: str) -> None:
    """Checks what was asked, and only then imports what is heavy."""
    run(lambda: _sweep(asked))


def _sweep(asked: dict[str, str]) -> None:
    from green_tune import job as jobs
    from green_tune import store

    ours = {spec.name for spec in fields(SweepConfig)}
    config = SweepConfig.parse({name: text for name, text in asked.items() if name in ours})
    base, space = spaces.split({name: text for name, text in asked.items() if name not in ours})
    largest = replace(base, **{name: dimension.high for name, dimension in space.items()})  # type: ignore[arg-type]
    job = jobs.prepare(base).pinned(largest)
    if job.rank.world > 1:
        raise ConfigError(
            f"a sweep runs in one process, and {job.rank.world} were started together; start it "
            "without torchrun, or several times with one -P study=NAME"
        )
    store.check_reachable(store.study_url())
    name = _study_name(config.study, job.source.name, job.task.name, job.device.gpu_type)
    config = replace(config, study=name)

    from green_tune.meter import Meter

    with Meter.of(job) as meter:
        meter.open(checked=False)  # what is spent outside of trials: imports, proposals
        meter.keep(launchers_run())
        _study(job, space, config, asked, meter)


def _study(
    job: "Job", space: "Space", config: SweepConfig, asked: dict[str, str], meter: "Meter"
) -> None:
    from green_tune import report, store, views
    from green_tune.bill import measured, overhead
    from green_tune.sweep import Objectives, missing, open_study, run_sweep
    from green_tune.tracking import STUDY, TRIAL, Query, Tracker

    name = config.study
    mine, sessions = Query(study=name, kinds=("trial",)), Query(study=name, kinds=("sweep",))
    mine.filters()  # before the first trial: the name can be searched for afterwards
    study = open_study(job, space, config, store.study_url())
    tracker = Tracker(store.tracking_uri())

    def trial(job: "Job", number: int) -> Objectives:
        tags = {STUDY: name, TRIAL: str(number)}
        with (
            tracker.run("trial", f"#{number} {name}", tags=tags, parent=parent) as current,
            meter.account(),
            measured(job, current, meter) as bill,
        ):
            result = run_experiment(job, current, bill)
        click.echo(report.trial_line(tracker.get(current.id)), err=True)
        assert bill.measurement is not None
        kg = bill.measurement.total.emissions_kg
        return Objectives(val_loss=result.val_loss, emissions_kg=kg)

    def summarise() -> None:
        records, overheads = tracker.find(mine), tracker.find(sessions)
        front = report.fronts(records)
        tracker.mark_front(records, front)
        parent.log_metrics(report.totals(records, overheads))
        parent.set_tags({"mlflow.note.content": report.sweep_note(records, overheads)})
        parent.log_table(report.rows(records), "trials.json")
        parent.log_table(report.rows(front), "front.json")
        parent.log_figure(report.front_figure(records, name), "front.png")
        click.echo(report.sweep_summary(records, name, missing(study, config.trials), overheads))
        click.echo(where())

    def where() -> str:
        link = views.study_link(tracker.uri, parent.experiment_id, name)
        return views.where(tracker.uri, link)

    with (
        tracker.run("sweep", name, asked=asked, tags={STUDY: name}) as parent,
        overhead(parent, meter, summarise),  # what was found and spent, however it ends
    ):
        from green_tune.experiment import describe, run_experiment  # torch, with the run open

        describe(job, parent)
        tracker.set_experiment_tags(views.study_view(name, list(space)))
        click.echo(where(), err=True)
        with meter.phase("between"):
            run_sweep(study, job, space, config.trials, trial)
    if not report.fronts(tracker.find(mine)):
        raise RunFailed(f"no trial of {name} finished; each one's reason is in its run")


def _study_name(asked: str, *parts: str) -> str:
    return asked if asked != "auto" else "-".join([*parts, f"{datetime.now():%y%m%d-%H%M%S}"])


if __name__ == "__main__":
    sweep()
