"""`mlflow run . -e grid`: base models x tasks x seeds on this GPU, each cell a nested run."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import click

from entrypoints.elsewhere import quoted_elsewhere
from entrypoints.options import launchers_run, options_of, run
from entrypoints.sweep import (
    Host,
    alone,
    earlier_front,
    run_study,
    study_name,
    total_trials,
)
from green_tune import grid as grids
from green_tune.config import GridConfig
from green_tune.errors import ConfigError, DataError, DoesNotFit, ModelError, RunFailed
from green_tune.grid import Cell, Grid, Prepared

if TYPE_CHECKING:
    from collections.abc import Callable

    from green_tune.job import Job
    from green_tune.ledger import Records
    from green_tune.meter import Meter
    from green_tune.run import Run
    from green_tune.study import Outcome, Study, Trial
    from green_tune.tally import Tally
    from green_tune.tracking import Tracker
    from green_tune.training import Bench
    from green_tune.trials import Trials

SPENT = ("energy_kwh", "emissions_kg", "runtime_h")


@click.command(
    help="Measure base models x tasks x seeds on this GPU, the cheapest cells first. Each cell is "
    "one run, or with trials=N a sweep; auto is then train's default, or sweep's range."
)
@options_of(GridConfig, defaults=grids.defaults())
def grid(**asked: str) -> None:
    """Checks what was asked, and only then imports what is heavy."""
    run(lambda: _grid(asked))


def _grid(asked: dict[str, str]) -> None:
    from green_tune import ranks, store

    wanted = _with_points(Grid.parse(asked))
    if (processes := ranks.this().world) > 1:
        raise alone("grid", processes)
    with quoted_elsewhere("grid", asked):
        prepared = Prepared.of(wanted)
    store.check_reachable(store.study_url())
    name = study_name(wanted.config.study, "grid", prepared.ground.device.gpu_type)

    from green_tune.meter import Meter

    with Meter.of(prepared.ground) as meter:
        meter.open(checked=False)  # what is spent outside of cells: imports, loading, the store
        meter.keep(launchers_run())
        _cells(prepared, name, asked, meter)


def _with_points(grid: Grid) -> Grid:
    """A grid whose sweeps have no more trials than there are points to try, if these are few."""
    if grid.config.trials == 1 or grid.config.sampler != "grid":
        return grid
    _, space = grid.split(next(grid.pairs()))
    trials = max(2, total_trials(grid.config, space))  # one would be no sweep
    return replace(grid, config=replace(grid.config, trials=trials))


def _cells(prepared: Prepared, name: str, asked: dict[str, str], meter: "Meter") -> None:
    """From the first cell to the last, and what is left of them, however it ends."""
    from green_tune import store, tally, views
    from green_tune.bill import overhead
    from green_tune.ledger import Ledger, Rate
    from green_tune.study import open_study
    from green_tune.tracking import Tracker

    tracker = Tracker(store.tracking_uri())
    shelf = Shelf(tracker=tracker, name=name, prepared=prepared)
    shelf.check()
    study = open_study(
        store.study_url(), name, prepared.grid.dimensions, identity=prepared.identity()
    )
    total = study.enqueue(cell._asdict() for cell in prepared.cells())
    config = prepared.grid.config
    learn = partial(Rate.of, prepared.works, config.trials)
    ledger = Ledger(config, meter, shelf.elsewhere, learn=learn, what="the next cell")
    ended = ""

    def summarise() -> None:
        tracker.close_dead()  # sessions of this grid among them, whose spending is still due
        found, spent, sessions = shelf.tally(ended), shelf.runs(), shelf.sessions()
        _leave(parent, found, spent, sessions)
        click.echo(tally.summary(found, spent, sessions))
        click.echo(where())

    def where() -> str:
        link = views.run_link(tracker.uri, parent.experiment_id, parent.id)
        return views.where(tracker.uri, link)

    def say(text: str) -> None:
        click.echo(f"{total - study.missing(total)}/{total} {text}", err=True)

    before = study.parent_run
    opened = tracker.session(
        f"worker of {name}",
        name,
        before,
        asked,
        study.others,
        lambda run_id: study.adopt(run_id, before),
        kind="grid",
    )
    with (
        opened as (parent, session),
        overhead(session, meter, summarise),  # what was found and spent, however it ends
    ):
        shelf.own.add(session.id)
        from green_tune import sweep as sweeps
        from green_tune.training import Bench  # torch, with the run open
        from green_tune.trials import Trials

        session.set_tags(grids.described(prepared))
        tracker.set_experiment_tags(views.usual_views())
        for task, data in prepared.data.items():
            session.log_dataset(f"{task}-{data.name}", data.source, data.digest, "training")
        click.echo(where(), err=True)
        bench = Bench()
        trials = Trials(
            study=study,
            name=name,
            tracker=tracker,
            parent=parent,
            bench=bench,
            meter=meter,
            ledger=ledger,
            bound=None,  # cells are not judged by each other
            reuse=config.reuse == "auto",
            show=lambda record: say(tally.line(record)),
            kind="cell",
            title=_title,
        )
        host = Host(tracker=tracker, study=study, run=parent, bench=bench, ledger=ledger)
        worker = Worker(
            shelf=shelf,
            study=study,
            trials=trials,
            bench=bench,
            host=host,
            meter=meter,
            say=say,
        )
        ledger.look()
        with meter.phase("between"):
            try:
                ended = sweeps.run_sweep(
                    study,
                    total,
                    worker.run,
                    trials.settle,
                    ledger.refuse,
                    alike=False,
                    title=_title,
                )
            except OutOfBudget as reason:
                ended = str(reason)
    _check_any(shelf.tally(ended))


class OutOfBudget(Exception):
    """A cell that is a sweep has used up the grid's budget; a larger one goes on with it."""


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """What the store holds of a grid. `own` are the sessions that this process has begun."""

    tracker: "Tracker"
    name: str
    prepared: Prepared
    own: set[str] = field(default_factory=set)

    def check(self) -> None:
        """Finds what is wrong with it before its first cell starts.

        Raises:
            ConfigError: its name could not be searched for afterwards, it was asked for with seeds
                that are left out now, or its sweeps would start from a study that has no front.
        """
        from green_tune.query import Query

        Query(study=self.name).filters()
        self._check_seeds()
        config = self.prepared.grid.config
        if config.trials > 1 and config.sampler != "grid":  # which starts from nothing
            for job in self.prepared.jobs.values():
                earlier_front(job, config, self.tracker)

    def _check_seeds(self) -> None:
        """Cells that were queued are run, and would be in no table if nobody asked for them."""
        from green_tune.results import STUDY

        sessions = [each for each in self.sessions() if each.tags.get(STUDY) == self.name]
        before = {seed for each in sessions for seed in grids.seeds(each.params.get("seed", "0"))}
        if without := sorted(before.difference(self.prepared.grid.seeds)):
            listed = ",".join(map(str, sorted(before)))
            raise ConfigError(
                f"study {self.name} was asked for with seed={listed}, now without "
                f"{', '.join(map(str, without))}; give these as well, or another study name"
            )

    def runs(self) -> "Records":
        """All that was tried: cells; and where these are sweeps, their trials and repeats."""
        return self._find("cell", "trial", "repeat")

    def sessions(self) -> "Records":
        """Those of the grid, and of the sweeps in it."""
        from green_tune.results import SESSION_KINDS

        return self._find(*SESSION_KINDS)

    def elsewhere(self) -> "tuple[Records, Records]":
        """Runs, and sessions whose spending this process's meter has not seen."""
        return self.runs(), [each for each in self.sessions() if each.run_id not in self.own]

    def sweep_of(self, cell: Cell) -> str:
        """The study of a cell that is a sweep."""
        return f"{self.name}/{grids.short(cell.model)}-{cell.task}-{cell.seed}"

    def tally(self, ended: str) -> "Tally":
        """Each cell that was asked for, as it stands."""
        from green_tune import tally

        runs, sessions, trials = self.runs(), self.sessions(), self.prepared.grid.config.trials
        found = tally.newest(record for record in runs if record.kind == "cell")
        cells = self.prepared.grid.cells()
        if trials > 1:
            sweeps = {c: tally.of_sweep(self.sweep_of(c), runs, sessions, trials) for c in cells}
            found |= {cell: record for cell, record in sweeps.items() if record}
        return tally.Tally(study=self.name, asked=cells, records=found, ended=ended)

    def _find(self, *kinds: str) -> "Records":
        from green_tune.query import Query

        return self.tracker.find(Query(study=self.name, parts=True, kinds=kinds))


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Runs the cells of a grid in this process, one after the other."""

    shelf: Shelf
    study: "Study"
    trials: "Trials"
    bench: "Bench"
    host: Host
    meter: "Meter"
    say: "Callable[[str], None]"

    def run(self, trial: "Trial") -> "Outcome":
        """One cell: a run, a sweep, or a row that says that it does not fit.

        Raises:
            DoesNotFit: it has no room on this device, which its run says.
            RunFailed: it failed, or what it needs cannot be loaded.
        """
        cell = Cell(**trial.values)
        found = self.shelf.prepared.found[cell.pair]
        if isinstance(found, DoesNotFit):
            self._unfit(cell, trial, found)
        job = found.with_config(replace(found.config, seed=cell.seed))  # type: ignore[union-attr]
        try:
            if self.shelf.prepared.grid.config.trials > 1:
                return self._searched(cell, job, trial)
            return self.trials.run(job, trial)
        except (DataError, ModelError) as error:  # of this cell: the others may do
            raise RunFailed(str(error)) from error

    def _unfit(self, cell: Cell, trial: "Trial", error: DoesNotFit) -> None:
        self.say(f"{grids.short(cell.model)} {cell.task}: does not fit")
        tags = grids.unfit(self.shelf.prepared, cell.pair, str(error))
        params = {name: str(value) for name, value in cell._asdict().items()}
        self.trials.leave(trial, tags, params, error)

    def _searched(self, cell: Cell, job: "Job", trial: "Trial") -> "Outcome":
        from green_tune import tally
        from green_tune.study import Outcome

        grid, name = self.shelf.prepared.grid, self.shelf.sweep_of(cell)
        config = replace(grid.config, study=name)
        _, space = grid.split(cell.pair)
        asked = grid.asked(cell.pair, cell.seed) | config.to_params()

        def join(sweep: str, session: str) -> None:
            self.study.note(trial, sweep)
            self.shelf.own.add(session)
            with self.meter.phase("setup"):  # the cell before may have had another base
                self.bench.load(job)

        click.echo(f"{grids.name_of(cell)}: a sweep of {config.trials} trials", err=True)
        host = replace(self.host, join=join)
        if ended := run_study(job, space, config, asked, self.meter, host):
            raise OutOfBudget(ended)
        record = self.shelf.tally("").records[cell]
        self.say(tally.line(record))
        return Outcome(
            val_loss=record.metrics["val_loss"], emissions_kg=record.metrics["emissions_kg"]
        )


def _title(trial: "Trial") -> str:
    return grids.name_of(Cell(**trial.values))


def _leave(parent: "Run", tally: "Tally", spent: "Records", sessions: "Records") -> None:
    """Leaves in the grid's own run what it has found: totals, the table, and all cells."""
    from green_tune import report
    from green_tune import tally as tallies

    totals = report.totals(spent, sessions)
    parent.log_metrics({name: totals[name] for name in SPENT})
    parent.set_tags({"mlflow.note.content": tallies.note(tally, spent, sessions)})
    parent.log_table(tallies.rows(tally), "cells.json")


def _check_any(tally: "Tally") -> None:
    """Raises RunFailed where nothing came of any cell, and nothing is under way elsewhere."""
    if tally.fruitless:
        why = tally.ended or "each one's reason is in its run"
        raise RunFailed(f"no cell of {tally.study} has a result: {why}")


if __name__ == "__main__":
    grid()
