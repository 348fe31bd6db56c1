"""The door to MLflow: runs as we write them and read them back.

Everything goes through MlflowClient and explicit run ids: no active run, no global state, so a
trial can never write into its parent. Under `mlflow run` the first run adopts the one that the
launcher made. It does not know what is trained or measured, only how it is called in the store.
"""

import json
import logging
import os
import re
import shlex
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LifecycleStage,
    Metric,
    Param,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking.context.registry import resolve_tags
from sqlalchemy.exc import SQLAlchemyError

from green_tune import gates, heartbeat, stop, store, worker
from green_tune.errors import ConfigError, StoreError
from green_tune.footprint import OVERHEAD, Measurement, from_csv, to_csv
from green_tune.results import RunRecord

log = logging.getLogger(__name__)

PARENT = "mlflow.parentRunId"
KIND, STUDY, TRIAL = "green_tune.kind", "green_tune.study", "green_tune.trial"
STATUS, ERROR, FRONT = "green_tune.status", "green_tune.error", "green_tune.front"
WORKER, SESSIONS = "green_tune.worker", "green_tune.sessions"
NOTE = "mlflow.note.content"
KINDS = ("train", "trial")  # what is compared; a sweep's own run holds their totals
RESUMPTION = "resumption"  # the kind of a launcher's run whose training goes on in another
FLUSH_S, FLUSH_POINTS = 2.0, 500  # one write costs 4 ms on SQLite and 100 over HTTP
MLFLOWS_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")  # what it calls a run that nobody named
PAGE = 1000


class Run:
    """One run that is being written.

    Metrics are buffered, and a thread writes them every few seconds: a store that is slow or away
    keeps no training waiting, and would else be billed as training.

    Every other method raises StoreError when the store does not answer.
    """

    def __init__(self, client: MlflowClient, run_id: str, experiment_id: str, name: str) -> None:
        self._client = client
        self.id = run_id
        self.experiment_id = experiment_id
        self.name = name
        self._buffer: list[Metric] = []
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._last_steps: dict[str, int] = {}  # of curves that sessions before have logged
        self.sessions = 1  # this one, and those before it
        self.spent_kg = 0.0  # by those before

    def log_params(self, params: Mapping[str, str]) -> None:
        """Writes those params that are not there yet: `mlflow run` has logged what was typed.

        A param is written once; MLflow would drop the whole call for one that differs.
        """
        with _named():
            there = self._client.get_run(self.id).data.params
            new = [Param(key, value) for key, value in params.items() if key not in there]
            for start in range(0, len(new), 100):
                self._client.log_batch(self.id, params=new[start : start + 100])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Writes or overwrites tags."""
        with _named():
            self._client.log_batch(self.id, tags=[RunTag(key, text) for key, text in tags.items()])

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Notes metrics with the time of now; they reach the store within seconds."""
        now_ms = int(time.time() * 1000)
        self._buffer += [Metric(key, value, now_ms, step) for key, value in metrics.items()]

    @property
    def unwritten(self) -> list[tuple[str, float, int, int]]:
        """Metrics that may not have reached the store: key, value, time in ms, and step."""
        return [(m.key, m.value, m.timestamp, m.step) for m in list(self._buffer)]

    def write_again(self, points: Sequence[tuple[str, float, int, int]]) -> None:
        """Notes what was `unwritten` in an earlier session; nothing is in the store twice."""
        self._buffer += [Metric(*point) for point in points]

    def flush(self) -> None:
        """Writes what is buffered; what could not be written stays buffered."""
        with _named(), self._writing:
            while batch := self._buffer[:FLUSH_POINTS]:
                if new := [point for point in batch if not self._is_there(point)]:
                    self._client.log_batch(self.id, metrics=new)
                del self._buffer[: len(batch)]

    def _is_there(self, point: Metric) -> bool:
        """True for steps of a curve that are done once more, to the bit as they were before.

        Figures have no steps, and a point that is equal to the last bit and millisecond MLflow
        itself takes for the same.
        """
        if self.sessions == 1 or not point.step:
            return False
        if point.key not in self._last_steps:
            history = self._client.get_metric_history(self.id, point.key)
            self._last_steps[point.key] = max((there.step for there in history), default=-1)
        return bool(point.step <= self._last_steps[point.key])

    def write_regularly(self) -> None:
        """Flushes until `end`; the body of a thread."""
        while not self._ended.wait(FLUSH_S):
            try:
                self.flush()
            except StoreError as error:
                log.warning("metrics of %s could not be written yet: %s", self.name, error)

    def end(self, status: str, error: str = "", ended_s: float | None = None) -> None:
        """Writes what is left and closes the run, as of now or of an earlier time."""
        self._ended.set()
        self.flush()
        self.set_tags({STATUS: status} | ({ERROR: error[:5000]} if error else {}))
        with _named():
            ended_ms = int(ended_s * 1000) if ended_s else None
            self._client.set_terminated(self.id, status, end_time=ended_ms)

    def log_dataset(self, name: str, source: str, digest: str, context: str) -> None:
        """Names the data set that this run read."""
        described = json.dumps({"source": source})
        dataset = Dataset(name, digest, source_type="green-tune", source=described)
        tags = [InputTag("mlflow.data.context", context)]
        with _named():
            self._client.log_inputs(self.id, datasets=[DatasetInput(dataset, tags)])

    def log_folder(self, folder: Path, name: str) -> None:
        """Copies a folder to the run's artifacts."""
        with _named():
            self._client.log_artifacts(self.id, str(folder), name)

    def log_text(self, text: str, name: str) -> None:
        """Writes a text as an artifact."""
        with _named():
            self._client.log_text(self.id, text, name)

    def log_measurement(self, measurement: Measurement, prefix: str = "") -> None:
        """Writes what was spent: figures, how they are known, and the time series behind them.

        With a prefix it is what a sweep spends beside its trials: the total alone.
        """
        if prefix:
            self.log_metrics(measurement.total.to_metrics(prefix))
        else:
            self.log_metrics(measurement.to_metrics())
        self.set_tags(measurement.to_tags())
        self.flush()
        self.log_text(to_csv(measurement.segments), "energy.csv")

    def with_earlier(self, measurement: Measurement) -> Measurement:
        """This session's measurement with what the figures of those before it hold."""
        with _named():
            text = _read_text(self._client, self.id, "energy.csv")
            tags = self._client.get_run(self.id).data.tags
        if text is None:
            return measurement
        try:
            segments = from_csv(text)
        except ValueError as error:  # of another version of green-tune
            return measurement.with_fault(f"the energy before it was resumed is {error}")
        earlier = Measurement(
            segments=segments,
            basis=replace(measurement.basis, methods=_methods(tags)),
            flags=_said(tags, "energy_flags"),
            faults=_said(tags, "energy_faults"),
        )
        return measurement.after(earlier, max(1, int(tags.get(SESSIONS, "1")) - 1))

    def log_figure(self, figure: Any, name: str) -> None:
        """Writes a matplotlib figure as an artifact."""
        with _named():
            self._client.log_figure(self.id, figure, name)

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Writes rows as a table artifact, which the MLflow UI shows as a table."""
        if rows:
            columns = {key: [row[key] for row in rows] for key in rows[0]}
            with _named():
                self._client.log_table(self.id, columns, name)


@contextmanager
def _named() -> Iterator[None]:
    """Gives a store's refusal its own name, whichever library it comes from."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise StoreError(f"the tracking store cannot be used: {_line(error)}") from error


@dataclass(frozen=True, kw_only=True)
class Query:
    """Which runs to read back; an empty field selects all. Times are in UTC."""

    model: str = ""
    task: str = ""
    gpu: str = ""
    study: str = ""
    since: datetime | None = None
    until: datetime | None = None
    kinds: Sequence[str] = KINDS

    def filters(self) -> list[str]:
        """MLflow filter strings that select these runs together: its grammar knows no OR."""
        equal = {
            "tags.base_model": self.model,
            "params.task": self.task,
            f"tags.`{STUDY}`": self.study,
        }
        terms = [f"{key} = {_quoted(text)}" for key, text in equal.items() if text]
        for sign, moment in ((">=", self.since), ("<", self.until)):
            if moment:
                terms.append(f"attributes.start_time {sign} {int(moment.timestamp() * 1000)}")
        return [
            " AND ".join([f"tags.`{KIND}` = '{kind}'", *device, *terms])
            for kind in self.kinds
            for device in self._devices()
        ]

    def _devices(self) -> list[list[str]]:
        """The GPU itself, and the variants of its family: a100 finds a100-40."""
        if not self.gpu:
            return [[]]
        gpu = self.gpu.lower()
        return [
            [f"tags.gpu_type = {_quoted(gpu)}"],
            [f"tags.gpu_type LIKE {_quoted(gpu + '-%')}"],
        ]


class Tracker:
    """The store of runs behind one MLflow tracking URI.

    Every method raises StoreError when the store does not answer.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        with _named(), store.made_by_one(uri):
            store.make_whole(uri, lambda draft: MlflowClient(draft).search_experiments())
            self._client = MlflowClient(uri)
            self.experiment_id = self._experiment()
            self._close_dead()

    @contextmanager
    def run(
        self,
        kind: str,
        name: str,
        *,
        asked: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        parent: Run | None = None,
    ) -> Iterator[Run]:
        """A run for the time of a block, closed with how the block ended.

        FINISHED; FAILED with the error as a tag; KILLED when it was asked to stop. The tag
        green_tune.status repeats it, because the launcher of `mlflow run` overwrites the status.
        """
        with _named():
            run = self._open(name, {KIND: kind, WORKER: worker.this()} | dict(tags or {}), parent)
        with _written(run, asked or {}):
            yield run

    @contextmanager
    def resumed(self, run_id: str) -> Iterator[Run]:
        """Another session of a run that was stopped, closed as by `run`.

        The launcher's run, where there is one, says where to look, and is in no table.
        """
        with _named():
            run = self._reopen(run_id)
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

    def has(self, run_id: str) -> bool:
        """Whether there is such a run, and nobody has deleted it."""
        try:
            return str(self._client.get_run(run_id).info.lifecycle_stage) == LifecycleStage.ACTIVE
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                return False
            raise StoreError(f"the tracking store cannot be used: {_line(error)}") from error

    def get(self, run_id: str) -> RunRecord:
        """One run as it stands in the store."""
        with _named():
            return _record(self._client.get_run(run_id))

    def find(self, query: Query) -> list[RunRecord]:
        """The runs that `query` selects, in all experiments, oldest first."""
        filters = query.filters()
        with _named():
            experiments = self._experiments()
            records = [record for text in filters for record in self._search(experiments, text)]
        return sorted(records, key=lambda record: record.started)

    def read_text(self, run_id: str, name: str) -> str | None:
        """A text that a run holds as an artifact; None where it has none of that name."""
        with _named():
            return _read_text(self._client, run_id, name)

    def set_experiment_tags(self, tags: Mapping[str, str]) -> None:
        """Tags of the experiment that this tracker writes to."""
        with _named():
            for key, text in tags.items():
                self._client.set_experiment_tag(self.experiment_id, key, text)

    def mark_front(self, records: Sequence[RunRecord], front: Sequence[RunRecord]) -> None:
        """Tags each record with whether it is on the front, where that has changed."""
        on_front = {record.run_id for record in front}
        for record in records:
            text = str(record.run_id in on_front).lower()
            if record.tags.get(FRONT) != text:
                with _named():
                    self._client.set_tag(record.run_id, FRONT, text)

    def _search(self, experiments: list[str], text: str) -> Iterator[RunRecord]:
        token = None
        while True:
            page = self._client.search_runs(
                experiments, text, ViewType.ACTIVE_ONLY, max_results=PAGE, page_token=token
            )
            yield from map(_record, page)
            if not (token := page.token):
                return

    def _close_dead(self) -> None:
        """Closes the runs that a killed process of this machine left open."""
        text = f"attributes.status = 'RUNNING' AND tags.`{WORKER}` LIKE '%'"
        for record in self._search(self._experiments(), text):
            if worker.is_dead(record.tags.get(WORKER, "")):
                self._bury(record)
        for run_id in heartbeat.of_the_dead():
            with suppress(MlflowException):  # a run of another store
                found = self._client.get_run(run_id)
                if found.info.lifecycle_stage == LifecycleStage.ACTIVE:  # nobody has deleted it
                    self._bury(_record(found))

    def _bury(self, record: RunRecord) -> None:
        """Writes what a dead process had spent at its last heartbeat, and closes its run.

        The run may be closed already, when the store was away while its figures were due.
        """
        with stop.held():
            self._write_last(record)

    def _write_last(self, record: RunRecord) -> None:
        run = Run(self._client, record.run_id, "", record.name)
        measurement = heartbeat.last(run.id)
        if measurement:
            judged = replace(
                measurement, faults=[*measurement.faults, *gates.failures(measurement)]
            )
            if record.kind == "sweep":
                run.log_measurement(judged, OVERHEAD)
            else:
                measurement = run.with_earlier(judged)
                run.log_measurement(measurement)
        heartbeat.forget(run.id)  # before the end: nobody looks for the heartbeats of a closed run
        ended_s = measurement.segments[-1].ended_s if measurement else None
        if record.status == "RUNNING":
            run.end("KILLED", "its process died", ended_s)
        spent = f"; it had spent {measurement.total.energy_kwh:.3g} kWh" if measurement else ""
        log.warning("run %s was left open by a process that died: closed%s", run.name, spent)

    def _experiments(self) -> list[str]:
        return [experiment.experiment_id for experiment in self._client.search_experiments()]

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
        run = Run(self._client, run_id, found.info.experiment_id, str(found.info.run_name))
        run.sessions = int(found.data.tags.get(SESSIONS, "1")) + 1
        run.spent_kg = found.data.metrics.get("emissions_kg", 0.0)
        run.set_tags({WORKER: worker.this(), SESSIONS: str(run.sessions)})
        self._client.update_run(run_id, "RUNNING")
        for key in {STATUS, ERROR} & found.data.tags.keys():
            self._client.delete_tag(run_id, key)
        return run

    def _open(self, name: str, tags: Mapping[str, str], parent: Run | None) -> Run:
        adopted = None if parent else os.environ.pop("MLFLOW_RUN_ID", None)
        if adopted:
            info = self._client.get_run(adopted).info
            if not MLFLOWS_NAME.fullmatch(info.run_name or ""):  # the user gave one: --run-name
                name = str(info.run_name)
            run = Run(self._client, adopted, info.experiment_id, name)
            run.set_tags(dict(tags) | {"mlflow.runName": name})
            return run
        lineage = {PARENT: parent.id} if parent else {}
        made = self._client.create_run(
            self.experiment_id, tags=resolve_tags() | lineage | tags, run_name=name
        )
        return Run(self._client, made.info.run_id, self.experiment_id, name)


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


def _read_text(client: MlflowClient, run_id: str, name: str) -> str | None:
    folder = name.rpartition("/")[0] or None
    with TemporaryDirectory() as copy:
        if name not in {file.path for file in client.list_artifacts(run_id, folder)}:
            return None
        path = Path(client.download_artifacts(run_id, name, copy))
        return path.read_text(encoding="utf-8", errors="replace")


def _methods(tags: Mapping[str, str]) -> dict[str, str]:
    """How each part of the energy was obtained, by a run's tags."""
    names = {part: f"energy_{part}_method" for part in ("cpu", "gpu", "ram")}
    return {part: tags.get(name, "") for part, name in names.items()}


def _said(tags: Mapping[str, str], name: str) -> list[str]:
    return tags[name].split("; ") if name in tags else []


def _end(run: Run, status: str, error: str) -> None:
    """Closes a run that failed; a store that is away must not hide why it did."""
    try:
        run.end(status, error)
    except StoreError as failure:
        log.warning("%s is still open, the next command closes it: %s", run.name, failure)


def _record(run: Any) -> RunRecord:
    tags = dict(run.data.tags)
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name,
        kind=tags.get(KIND, ""),
        status=tags.get(STATUS, run.info.status),
        started=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        parent_id=tags.get(PARENT, ""),
        params={key: _unquoted(text) for key, text in run.data.params.items()},
        metrics=dict(run.data.metrics),
        tags=tags,
    )


def _unquoted(text: str) -> str:
    """A param as it was meant; the launcher stores it quoted for the shell."""
    if not text.startswith("'"):
        return text
    try:
        words = shlex.split(text)
    except ValueError:  # of a run that is not ours
        return text
    return words[0] if len(words) == 1 else text


def _quoted(text: str) -> str:
    if "'" not in text:
        return f"'{text}'"
    if '"' in text:
        raise ConfigError(f"a name with both kinds of quotation marks cannot be searched: {text}")
    return f'"{text}"'


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
