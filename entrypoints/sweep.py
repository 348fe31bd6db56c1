"""`mlflow run . -e sweep`: an Optuna study over loss and emissions, its trials nested runs."""

from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from entrypoints.elsewhere import quoted_elsewhere
from entrypoints.options import launchers_run, options_of, run
from green_tune import space as spaces
from green_tune.config import SweepConfig, TrainConfig
from green_tune.errors import ConfigError, RunFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from green_tune.job import Job
    from green_tune.ledger import Ledger
    from green_tune.meter import Meter
    from green_tune.results import RunRecord
    from green_tune.run import Run
    from green_tune.space import Space
    from green_tune.study import Outcome, Study, Trial
    from green_tune.tracking import Tracker
    from green_tune.training import Bench
    from green_tune.trials import Trials


@dataclass(frozen=True, kw_only=True)
class Host:
    """What a sweep has from whatever it is a part of; one that stands alone has a tracker.

    `join` is told which run is the sweep's and which one this session's, before anything is spent
    on it, and makes the bench ready for it.
    """

    tracker: "Tracker"
    study: "Study | None" = None
    run: "Run | None" = None
    bench: "Bench | None" = None
    ledger: "Ledger | None" = None
    join: "Callable[[str, str], None]" = lambda study, session: None

    def say(self, text: str, *, err: bool = False) -> None:
        """What a sweep alone shows; a host has its own screen."""
        if not self.run:
            click.echo(text, err=err)

    @contextmanager
    def account(self, meter: "Meter") -> "Iterator[None]":
        """A part's own, as late as can be: what goes wrong before is the host's."""
        if self.run:
            meter.open(checked=False)
        yield


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
    with quoted_elsewhere("sweep", asked):
        job = jobs.prepare(base).pinned(largest)
    if job.rank.world > 1:
        raise alone("sweep", job.rank.world)
    store.check_reachable(store.study_url())
    name = study_name(config.study, job.source.name, job.task.name, job.device.gpu_type)
    config = replace(config, study=name)

    from green_tune.meter import Meter

    with Meter.of(job) as meter:
        meter.open(checked=False)  # what is spent outside of trials: imports, loading, proposals
        meter.keep(launchers_run())
        run_study(job, space, config, asked, meter)


def run_study(
    job: "Job",
    space: "Space",
    config: SweepConfig,
    asked: "Mapping[str, str]",
    meter: "Meter",
    host: Host | None = None,
) -> str:
    """A study from its first trial to its last; why it ended before, empty where it did not.

    The meter's current account is the study's own; one that has a host opens another for itself.

    Raises:
        RunFailed: no trial of it finished.
    """
    from green_tune import store, summary, views
    from green_tune.bill import overhead
    from green_tune.ledger import Ledger
    from green_tune.query import Query
    from green_tune.results import SESSION_KINDS
    from green_tune.tracking import Tracker

    name = config.study
    mine, sessions = Query(study=name, kinds=("trial",)), Query(study=name, kinds=SESSION_KINDS)
    again = Query(study=name, kinds=("repeat",))
    mine.filters()  # before the first trial: the name can be searched for afterwards
    host = host or Host(tracker=Tracker(store.tracking_uri()))
    tracker = host.tracker
    study = _opened(job, space, config, host)
    everything = replace(mine, kinds=("trial", "repeat"))
    ledger = Ledger(
        config,
        meter,
        lambda: (tracker.find(everything), tracker.find(sessions)),
        within=host.ledger,
    )
    ended = ""

    def summarise() -> None:
        tracker.close_dead()  # sessions of this study among them, whose spending is still due
        records, overheads = tracker.find(mine), tracker.find(sessions)
        repeated = tracker.find(again)
        tracker.mark_front(records, summary.on_front(records))
        _leave(parent, records, repeated, overheads, name, list(space))
        missing = ended or summary.to_go_on(study.missing(total_trials(config, space)), name)
        host.say(summary.sweep_summary(records, name, missing, overheads, repeated))
        host.say(where())

    def where() -> str:
        link = views.study_link(tracker.uri, parent.experiment_id, name)
        return views.where(tracker.uri, link)

    before = study.parent_run
    opened = tracker.session(
        f"worker of {name}",
        name,
        before,
        asked,
        study.others,
        lambda run_id: study.adopt(run_id, before),
        within=host.run,
    )
    with (
        opened as (parent, session),
        host.account(meter),
        overhead(session, meter, summarise),  # what was found and spent, however it ends
    ):
        from green_tune import sweep as sweeps
        from green_tune.experiment import describe  # torch, with the run open

        host.join(parent.id, session.id)
        describe(job, session)
        tracker.set_experiment_tags(views.study_view(name, list(space)) | views.usual_views())
        host.say(where(), err=True)
        trials = _trials(config, host, study, parent, meter, ledger)
        ledger.look()

        def one(trial: "Trial") -> "Outcome":
            return trials.run(sweeps.configured(job, trial), trial)

        total = total_trials(config, space)
        with meter.phase("between"):
            ended = sweeps.run_sweep(study, total, one, trials.settle, ledger.refuse)
            if config.repeats > 1 and not (ended or study.others()):
                ended = _repeated(job, space, config, study, trials, ledger)
    if not summary.on_front(tracker.find(mine)) and not (host.run and ended):
        reason = "each one's reason is in its run" if ended == "" else ended
        raise RunFailed(f"no trial of {name} finished: {reason}")
    return ended


def _trials(
    config: SweepConfig, host: Host, study: "Study", parent: "Run", meter: "Meter", ledger: "Ledger"
) -> "Trials":
    """What runs a study's trials in this process."""
    from green_tune import summary
    from green_tune.dominance import Bound
    from green_tune.training import Bench
    from green_tune.trials import Trials

    return Trials(
        study=study,
        name=config.study,
        tracker=host.tracker,
        parent=parent,
        bench=host.bench or Bench(),
        meter=meter,
        ledger=ledger,
        bound=Bound() if config.early_stop else None,
        reuse=config.reuse == "auto",
        show=lambda record: click.echo(summary.trial_line(record), err=True),
    )


def _opened(job: "Job", space: "Space", config: SweepConfig, host: Host) -> "Study":
    """The study, made or joined; a new one begins with what is known to be good."""
    from green_tune import earlier, store
    from green_tune.study import open_study
    from green_tune.sweep import identity

    def first() -> list[dict[str, Any]]:
        if config.sampler == "grid":
            return []
        found = earlier_front(job, config, host.tracker)
        return earlier.best_values(found, space) or [earlier.usual(space)]

    return open_study(
        host.study or store.study_url(),
        config.study,
        space,
        identity=identity(job, space),
        sampler=config.sampler,
        seed=job.config.seed,
        first=first,
    )


def earlier_front(job: "Job", config: SweepConfig, tracker: "Tracker") -> "Sequence[RunRecord]":
    """The best trials of earlier studies of this model and task, as `warm_start` asks for them.

    Raises:
        ConfigError: it names a study that has none.
    """
    from green_tune.query import Query

    if config.warm_start == "never":
        return []
    query = Query(
        model=job.source.name,
        task=job.task.name,
        study="" if config.warm_start == "auto" else config.warm_start,
        front=True,
        kinds=("trial",),
    )
    found = tracker.find(query)
    if not found and config.warm_start != "auto":
        raise ConfigError(
            f"warm_start={config.warm_start}: the store has no front of that study with "
            f"{job.source.name} and {job.task.name}; give another, auto or never"
        )
    return found


def total_trials(config: SweepConfig, space: "Space") -> int:
    """How many trials the study is to have: no more than a grid has points."""
    if config.sampler != "grid":
        return config.trials
    from green_tune import samplers

    return min(config.trials, samplers.grid_size(space))


def _repeated(
    job: "Job",
    space: "Space",
    config: SweepConfig,
    study: "Study",
    trials: "Trials",
    ledger: "Ledger",
) -> str:
    """The best trials on further seeds, as a study of their own; why it ended before, if it did."""
    from green_tune import earlier, repeats
    from green_tune import sweep as sweeps
    from green_tune.results import TRIAL
    from green_tune.study import open_study

    found = trials.others()
    records = {record.tags[TRIAL]: record for record in found}
    seeds = range(job.config.seed + 1, job.config.seed + config.repeats)
    pairs = [{"trial": int(n), "seed": s} for s in seeds for n in repeats.finalists(found)]
    again = open_study(
        study,
        f"{study.name}/repeats",
        repeats.SPACE,
        identity={"study": study.name},
    )
    runner = trials.repeating(again)

    def varied(values: "Mapping[str, Any]") -> dict[str, Any]:
        return earlier.values_of(records[str(values["trial"])], space)

    def one(trial: "Trial") -> "Outcome":
        config = replace(job.config, **varied(trial.values), seed=trial.values["seed"])
        return runner.run(job.with_config(config), trial)

    def refuse(values: "Mapping[str, Any]") -> str:
        return ledger.refuse(varied(values) if values else {})

    return sweeps.run_sweep(again, again.enqueue(pairs), one, runner.settle, refuse)


def _leave(
    parent: "Run",
    records: "Sequence[RunRecord]",
    repeated: "Sequence[RunRecord]",
    overheads: "Sequence[RunRecord]",
    study: str,
    varied: "Sequence[str]",
) -> None:
    """Leaves in the study's own run what it has found: totals, tables, figures and the invoice."""
    from green_tune import importance, invoice, panels, pictures, points, report, summary

    parent.log_metrics(report.totals([*records, *repeated], overheads))
    for number, gained in enumerate(points.gained(records), start=1):
        parent.log_metrics(
            {
                "hypervolume": gained.hypervolume,
                "hypervolume_ended": gained.hypervolume_ended,
                "hypervolume_spent_kg": gained.spent_kg,
            },
            step=number,
        )
    parent.set_tags({"mlflow.note.content": summary.sweep_note(records, overheads, repeated)})
    parent.log_text(invoice.markdown([*records, *repeated], overheads, study=study), "invoice.md")
    parent.log_table(report.rows(records), "trials.json")
    parent.log_table(summary.front_rows(records), "front.json")
    if repeated:
        parent.log_table(summary.repeats_rows(records, repeated), "repeats.json")
    found = importance.importances(records, varied)
    figures = {
        "front": pictures.front_figure(records, study),
        "hypervolume": pictures.hypervolume_figure(records, study),
        "parallel": panels.parallel_figure(records, study),
        "importance": pictures.importance_figure(found, study, importance.remark(records)),
        "timeline": panels.timeline_figure(records, study),
    }
    for name, figure in figures.items():
        if figure:
            parent.log_figure(figure, f"{name}.png")


def alone(command: str, processes: int) -> ConfigError:
    """What torchrun is told that starts a command which runs in one process."""
    return ConfigError(
        f"a {command} runs in one process, and {processes} were started together; start it "
        "without torchrun, or several times with one -P study=NAME"
    )


def study_name(asked: str, *parts: str) -> str:
    """The name that was asked for, or one that nothing else has."""
    return asked if asked != "auto" else "-".join([*parts, f"{datetime.now():%y%m%d-%H%M%S}"])


if __name__ == "__main__":
    sweep()
