"""One run that is being written to MLflow: its params, tags, metrics, artifacts, and its end.

A door to MLflow beside `tracking`, which opens runs and finds them again. It knows how a figure
reaches the store, not what is measured or trained.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from green_tune.errors import StoreError
from green_tune.footprint import Measurement, from_csv, to_csv

log = logging.getLogger(__name__)

TABLES = "mlflow.loggedArtifacts"  # those that its UI shows as tables
STATUS, ERROR, SESSIONS = "green_tune.status", "green_tune.error", "green_tune.sessions"
FLUSH_S, FLUSH_POINTS = 2.0, 500  # one write costs 4 ms on SQLite and 100 over HTTP


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
        with named():
            there = self._client.get_run(self.id).data.params
            new = [Param(key, value) for key, value in params.items() if key not in there]
            for start in range(0, len(new), 100):
                self._client.log_batch(self.id, params=new[start : start + 100])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Writes or overwrites tags."""
        with named():
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
        with named(), self._writing:
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
        self.close(status, ended_s)

    def close(self, status: str, ended_s: float | None = None) -> None:
        """The last thing that is written of a run."""
        with named():
            ended_ms = int(ended_s * 1000) if ended_s else None
            self._client.set_terminated(self.id, status, end_time=ended_ms)

    def log_dataset(self, name: str, source: str, digest: str, context: str) -> None:
        """Names the data set that this run read."""
        described = json.dumps({"source": source})
        dataset = Dataset(name, digest, source_type="green-tune", source=described)
        tags = [InputTag("mlflow.data.context", context)]
        with named():
            self._client.log_inputs(self.id, datasets=[DatasetInput(dataset, tags)])

    def log_folder(self, folder: Path, name: str) -> None:
        """Copies a folder to the run's artifacts; without a name, what is in it."""
        with named():
            self._client.log_artifacts(self.id, str(folder), name or None)

    def log_text(self, text: str, name: str) -> None:
        """Writes a text as an artifact."""
        with named():
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
        with named():
            text = read_text(self._client, self.id, "energy.csv")
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
        with named():
            self._client.log_figure(self.id, figure, name)

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Writes rows as a table artifact, which the MLflow UI shows as a table.

        MLflow's own `log_table` would append them to those of an earlier session.
        """
        if not rows:
            return
        data = [[None if _is_nan(value) else value for value in row.values()] for row in rows]
        table = {"columns": list(rows[0]), "data": data}
        self.log_text(json.dumps(table), name)
        with named():
            tables = json.loads(self._client.get_run(self.id).data.tags.get(TABLES, "[]"))
        shown = {"path": name, "type": "table"}
        if shown not in tables:
            self.set_tags({TABLES: json.dumps([*tables, shown])})


def _is_nan(value: object) -> bool:
    """What JSON has no word for."""
    return isinstance(value, float) and math.isnan(value)


@contextmanager
def named() -> Iterator[None]:
    """Gives a store's refusal its own name, whichever library it comes from."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise StoreError(f"the tracking store cannot be used: {line(error)}") from error


def read_text(client: MlflowClient, run_id: str, name: str) -> str | None:
    """A text artifact of a run; None where it has none of that name."""
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


def line(error: Exception) -> str:
    """What an error says, in one line."""
    return str(error).strip().split("\n")[0]
