"""The door to MLflow: runs as they are opened, found again and closed.

Everything goes through MlflowClient and explicit run ids: no active run, no global state, so a
trial can never write into its parent. Under `mlflow run` the first run adopts the one that the
launcher made. It does not know what is trained or measured, only how it is called in the store.
"""

import logging
import os
import re
import shlex
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from mlflow.tracking.context.registry import resolve_tags
from sqlalchemy.pool import NullPool

from green_tune import gates, heartbeat, reading, secrecy, spool, stop, store, worker
from green_tune.delivery import Delivery, named, twice
from green_tune.errors import StoreAway, StoreError
from green_tune.footprint import GRAMS_PER_KG, OVERHEAD
from green_tune.query import KINDS, Query
from green_tune.reading import PARENT
from green_tune.results import FRONT, KIND, SESSION_KINDS, STUDY, WORKER, RunRecord
from green_tune.run import ERROR, SESSIONS, STATUS, Run, read_text

T = TypeVar("T")
log = logging.getLogger(__name__)

NOTE = "mlflow.note.content"
AS_OF_LAST = "as of its last validation; the rest is known on the machine where it ran"
FORETELLING = 200  # runs: enough for a fit and for an interval, and read in a moment
RESUMPTION = "resumption"  # the kind of a launcher's run whose training goes on in another
MLFLOWS_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")  # what it calls a run that nobody named


class Tracker:
    """The store of runs behind one MLflow tracking URI.

    Making one raises StoreAway when the store does not answer. From then on results are at stake:
    every method waits for it, for `store.patience_s` at the most, and then raises the same.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        with named(), store.made_by_one(uri):
            _check_login(uri)
            store.make_whole(uri, lambda draft: MlflowClient(draft).search_experiments())
            self._client = MlflowClient(uri)
            self.experiment_id = self._experiment()
        self.deliver()
        self.close_dead()

    @contextmanager
    def run(
        self,
        kind: str,
        name: str,
        *,
        asked: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        parent: Run | None = None,
        own: bool = True,
    ) -> Iterator[Run]:
        """A run for the time of a block, closed with how the block ended.

        FINISHED; FAILED with the error as a tag; KILLED when it was asked to stop. The tag
        green_tune.status repeats it, because the launcher of `mlflow run` overwrites the status.
        A run with a parent is one of its `own`, unless it may be the launcher's.
        """
        tags = {KIND: kind, WORKER: worker.this()} | dict(tags or {})
        run = self._ask(lambda: self._open(name, tags, parent, adopts=not (parent and own)))
        with _written(run, asked or {}):
            yield run

    @contextmanager
    def resumed(self, run_id: str) -> Iterator[Run]:
        """Another session of a run that was stopped, closed as by `run`.

        The launcher's run, where there is one, says where to look, and is in no table.
        """
        run = self._ask(lambda: self._reopen(run_id))
        note = {NOTE: f"goes on in run {run.id}"}
        with _written(run, {}), self.adopted(RESUMPTION, run.name, {}, note):
            yield run

    @contextmanager
    def adopted(
        self, kind: str, name: str, asked: Mapping[str, str], tags: Mapping[str, str] | None = None
    ) -> Iterator[None]:
        """A run for a command without one of its own: the launcher's, where there is one."""
        if "MLFLOW_RUN_ID" not in os.environ:
            yield
            return
        with self.run(kind, name, asked=asked, tags=tags):
            yield

    @contextmanager
    def session(  # noqa: PLR0913 - a study, its run and who is at it
        self,
        name: str,
        study: str,
        parent_id: str,
        asked: Mapping[str, str],
        others: Callable[[], Sequence[str]],
        adopt: Callable[[str], str] = lambda run_id: run_id,
        *,
        kind: str = "sweep",
        within: Run | None = None,
    ) -> Iterator[tuple[Run, Run]]:
        """A worker's session of a study: the study's own run, and the session's.

        They are one for the first session. A later one is a run nested in the first one's; the
        launcher's is taken for it, where there is one. The study's run is open for as long as any
        worker is at it: `others` names those that still are when this one leaves. Of two that
        begin at once, one run is the study's: `adopt` is offered a run, and says which it is. The
        study's run is of some `kind`, and lies `within` another's where it is a part of that.
        """
        tags = {STUDY: study}
        if not (parent_id and self.has(parent_id)):
            with self.run(kind, study, asked=asked, tags=tags, parent=within) as run:
                first = adopt(run.id)
                parent = run if first == run.id else self._under(run, name, first)
                with nullcontext() if parent is run else _ended_alike(parent):
                    yield parent, run
            self._leave(parent, others())
            return
        parent = self._joined(parent_id)
        with (
            self.run("worker", name, asked=asked, tags=tags, parent=parent, own=False) as run,
            _ended_alike(parent),
        ):
            yield parent, run
        self._leave(parent, others())

    def _under(self, run: Run, name: str, first: str) -> Run:
        """Makes a run a session of a study whose own run is another's, by a moment."""
        run.set_tags({KIND: "worker", PARENT: first, "mlflow.runName": name})
        run.name = name
        return self._joined(first)

    def _joined(self, run_id: str) -> Run:
        """The study's own run; opened again, unless another worker has it open."""
        record = self.get(run_id)
        if record.status == "RUNNING" and not worker.is_dead(record.tags.get(WORKER, "")):
            return self._run(run_id, self.experiment_id, record.name, sessions=2)  # others' points
        return self._ask(lambda: self._reopen(run_id))

    def _leave(self, run: Run, others: Sequence[str]) -> None:
        """Leaves a study's run to another worker, which will close it; or as one that went well.

        What it says of an end is then no longer true, be it this session's or another's before.
        """
        if others:
            self._ask(lambda: self._client.set_tag(run.id, WORKER, others[0]))
            self._ask(lambda: self._client.update_run(run.id, "RUNNING"))
        tags = self.get(run.id).tags
        self._untag(run.id, {STATUS, ERROR} & tags.keys() if others else {ERROR} & tags.keys())

    def _untag(self, run_id: str, keys: Iterable[str]) -> None:
        """Takes tags off a run; another worker may have taken them off meanwhile."""

        def take_off(key: str) -> None:
            try:
                self._client.delete_tag(run_id, key)
            except MlflowException as error:
                if not _is_missing(error):
                    raise

        for key in keys:
            self._ask(partial(take_off, key))

    def bury(self, run_id: str) -> RunRecord | None:
        """Closes a run whose worker died, wherever it was; None where there is no such run.

        What it had spent is in its last heartbeat on the machine where it ran; from elsewhere,
        what is known is what it had spent at its last validation.
        """
        if not (run_id and self.has(run_id)):
            return None
        self.deliver()
        record = self.get(run_id)
        if self._is_open(run_id) and not worker.is_alive(record.tags.get(WORKER, "")):
            self._bury(record)
        return self.get(run_id)

    def _is_open(self, run_id: str) -> bool:
        """By MLflow's own status, which is the last thing that the end of a run writes."""
        return str(self._ask(lambda: self._client.get_run(run_id)).info.status) == "RUNNING"

    def has(self, run_id: str) -> bool:
        """Whether there is such a run, and nobody has deleted it."""

        def stage() -> str:
            try:
                return str(self._client.get_run(run_id).info.lifecycle_stage)
            except MlflowException as error:
                if _is_missing(error):
                    return ""
                raise

        return self._ask(stage) == LifecycleStage.ACTIVE

    def get(self, run_id: str) -> RunRecord:
        """One run as it stands in the store."""
        return self._ask(lambda: reading.record(self._client.get_run(run_id)))

    def find(self, query: Query) -> list[RunRecord]:
        """The runs that `query` selects, in all experiments, oldest first.

        Without MLflow's own tags, which nobody compares and which may be long.

        Raises:
            ConfigError: MLflow cannot read the query's own filter; with what it says.
        """
        return self._ask(lambda: reading.find(self._client, query))

    def newest(self, gpu_type: str = "") -> list[RunRecord]:
        """The last runs on such a device, probes among them: by which the next one is foretold.

        Without a device: those on all GPUs.
        """
        gpus = "" if gpu_type else "tags.gpu_type != 'cpu'"
        kinds = (*KINDS, "probe")
        return self.find(Query(gpu=gpu_type, filter=gpus, kinds=kinds, newest=FORETELLING))

    def read_text(self, run_id: str, name: str) -> str | None:
        """A text that a run holds as an artifact; None where it has none of that name."""
        return self._ask(lambda: read_text(self._client, run_id, name))

    def place(self, run_id: str) -> str:
        """Where a run's artifacts are: a folder of this machine, or an address."""
        uri = str(self._ask(lambda: self._client.get_run(run_id)).info.artifact_uri)
        return unquote(urlsplit(uri).path) if uri.startswith("file:") else uri

    def set_experiment_tags(self, tags: Mapping[str, str]) -> None:
        """Tags of the experiment that this tracker writes to, where a user has set no other."""
        there = self._ask(lambda: self._client.get_experiment(self.experiment_id)).tags
        for key, text in tags.items():
            if key not in there:
                about = (self.experiment_id, key, text)
                self._ask(partial(twice, self._client.set_experiment_tag, *about))

    def mark_front(self, records: Sequence[RunRecord], front: Sequence[RunRecord]) -> None:
        """Tags each record with whether it is on the front, where that has changed."""
        on_front = {record.run_id for record in front}
        for record in records:
            text = str(record.run_id in on_front).lower()
            if record.tags.get(FRONT) != text:
                self._ask(partial(self._client.set_tag, record.run_id, FRONT, text))

    def deliver(self) -> None:
        """Writes what processes that are gone have left on this machine's disk for this store."""
        for left in spool.left_for(store.address(self.uri)):
            about, count = left.about, len(left)
            delivery = Delivery(self._client, about.run_id, about.sessions)
            try:
                left.deliver(delivery.perform)
            except StoreAway as error:
                log.warning("%s waits on in %s: %s", about.name, left.folder, error)
            else:
                log.warning("%s: the %d writes that waited here are delivered", about.name, count)

    def close_dead(self) -> None:
        """Closes the runs that killed processes of this machine left open."""
        text = f"attributes.status = 'RUNNING' AND tags.`{WORKER}` LIKE '%'"
        for record in self._ask(lambda: list(reading.search(self._client, [text]))):
            if worker.is_dead(record.tags.get(WORKER, "")):
                self._bury(record)
        for run_id in heartbeat.of_the_dead():
            if self.has(run_id):  # else it is of another store, or somebody has deleted it
                self._bury(self.get(run_id))

    def _bury(self, record: RunRecord) -> None:
        """Writes what a dead process had spent at its last heartbeat, and closes its run.

        The run may be closed already, when the store was away while its figures were due.
        """
        with stop.held():
            self._write_last(record)

    def _write_last(self, record: RunRecord) -> None:
        run = self._run(record.run_id, "", record.name)
        measurement = heartbeat.last(run.id)
        if measurement:
            judged = replace(
                measurement, faults=[*measurement.faults, *gates.failures(measurement)]
            )
            if record.kind in SESSION_KINDS:
                run.log_measurement(judged, OVERHEAD)
            else:
                self._ask(run.read_earlier)
                measurement = run.with_earlier(judged)
                run.log_measurement(measurement)
        elif "energy_kwh" not in record.metrics and "emissions_so_far_kg" in record.metrics:
            _write_so_far(run, record)
        heartbeat.forget(run.id)  # before the end: nobody looks for the heartbeats of a closed run
        ended_s = measurement.segments[-1].ended_s if measurement else None
        if record.status == "RUNNING":
            run.end("FAILED", "its process died", ended_s)
        elif self._is_open(run.id):  # it died between writing how it ended and closing it
            run.close(record.status, ended_s)
        spent = f"; it had spent {measurement.total.energy_kwh:.3g} kWh" if measurement else ""
        log.warning("run %s was left open by a process that died: closed%s", run.name, spent)

    def _experiment(self) -> str:
        """As MLflow chooses it: by id, by name (made if need be), or the default one."""
        if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return experiment_id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        if found := self._client.get_experiment_by_name(name):
            return str(found.experiment_id)
        return str(self._client.create_experiment(name))

    def _reopen(self, run_id: str) -> Run:
        """Takes a closed run up again: first as ours, so that nobody buries it, then as open."""
        found = self._client.get_run(run_id)
        sessions = int(found.data.tags.get(SESSIONS, "1")) + 1
        where, name = found.info.experiment_id, str(found.info.run_name)
        run = self._run(run_id, where, name, sessions=sessions)
        run.spent_kg = found.data.metrics.get("emissions_kg", 0.0)
        for key, text in ((WORKER, worker.this()), (SESSIONS, str(sessions))):
            self._client.set_tag(run_id, key, text)  # at once: later somebody else may be at it
        run.read_earlier()
        self._untag(run_id, {STATUS, ERROR} & found.data.tags.keys())  # else they say that it ended
        self._client.update_run(run_id, "RUNNING")
        return run

    def _open(self, name: str, tags: Mapping[str, str], parent: Run | None, *, adopts: bool) -> Run:
        lineage = {PARENT: parent.id} if parent else {}
        adopted = os.environ.get("MLFLOW_RUN_ID") if adopts else None
        if adopted:
            found = self._client.get_run(adopted)
            del os.environ["MLFLOW_RUN_ID"]  # not before: where nobody answers it is asked again
            info = found.info
            if not MLFLOWS_NAME.fullmatch(info.run_name or ""):  # the user gave one: --run-name
                name = str(info.run_name)
            run = self._run(adopted, info.experiment_id, name)
            left = secrecy.hidden(found.data.tags)  # a git address with a token, such as
            run.set_tags({**left, **tags, **lineage, "mlflow.runName": name})
            return run
        context = resolve_tags()
        about = {**context, **secrecy.hidden(context), **lineage, **tags}
        made = self._client.create_run(self.experiment_id, tags=about, run_name=name)
        return self._run(made.info.run_id, self.experiment_id, name)

    def _run(self, run_id: str, experiment_id: str, name: str, *, sessions: int = 1) -> Run:
        address = store.address(self.uri)
        return Run(self._client, run_id, experiment_id, name, address=address, sessions=sessions)

    def _ask(self, question: Callable[[], T]) -> T:
        """The store's answer, which is waited for."""

        def asked() -> T:
            with named():
                return question()

        return store.patiently(asked, lambda error: str(error) * isinstance(error, StoreAway))


def _check_login(uri: str) -> None:
    """Of a database: MLflow would try for some hundred seconds whether a password has changed."""
    if uri.startswith(("postgresql", "mysql")):
        sqlalchemy.create_engine(uri, poolclass=NullPool).connect().close()


def _is_missing(error: MlflowException) -> bool:
    return bool(error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST))


@contextmanager
def _written(run: Run, asked: Mapping[str, str]) -> Iterator[None]:
    """A block in which a run is open, closed with how the block ended."""
    try:
        if asked:  # as the launcher logs it, so that both ways of starting leave the same run
            run.log_params({key: shlex.quote(text) for key, text in asked.items()})
        threading.Thread(target=run.write_regularly, daemon=True).start()
        yield
    except KeyboardInterrupt as stopped:
        _end(run, "KILLED", str(stopped) or "stopped by Ctrl-C")
        stopped.add_note("what was spent is logged")
        raise
    except BaseException as error:
        _end(run, "FAILED", f"{type(error).__name__}: {error}")
        raise
    run.end("FINISHED")


def _write_so_far(run: Run, record: RunRecord) -> None:
    """What a run of another machine had spent at its last validation; the rest is there."""
    kg = record.metrics["emissions_so_far_kg"]
    g_per_kwh = float(record.tags["intensity_g_per_kwh"]) * float(record.params["pue"])
    run.log_metrics({"emissions_kg": kg, "energy_kwh": kg * GRAMS_PER_KG / g_per_kwh})
    run.set_tags({"energy_flags": AS_OF_LAST})


@contextmanager
def _ended_alike(run: Run) -> Iterator[None]:
    """A block after which a run ends as the block does."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        _end(run, "KILLED", str(stopped))
        raise
    except BaseException as error:
        _end(run, "FAILED", f"{type(error).__name__}: {error}")
        raise
    run.end("FINISHED")


def _end(run: Run, status: str, error: str) -> None:
    """Closes a run that failed; a store that is away must not hide why it did."""
    try:
        run.end(status, error)
    except StoreError as failure:
        log.warning("%s is still open, the next command closes it: %s", run.name, failure)
