"""One run that is being written to MLflow: its params, tags, metrics, artifacts, and its end.

A door to MLflow beside `tracking`, which opens runs and finds them again. It knows how a figure
reaches the store, or this machine's disk while that is away, not what is measured or trained.
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

from green_tune import secrecy, store
from green_tune.delivery import Delivery, named, of_artifacts
from green_tune.errors import StoreAway, StoreError, Undelivered
from green_tune.footprint import Measurement, from_csv, to_csv
from green_tune.spool import About, Act, Spool

log = logging.getLogger(__name__)

STATUS, ERROR, SESSIONS = "green_tune.status", "green_tune.error", "green_tune.sessions"
FLUSH_S, FLUSH_POINTS = 2.0, 500  # one write costs 4 ms on SQLite and 100 over HTTP


Point = tuple[str, float, int, int]  # of a metric: key, value, time in ms, step


class Run:
    """One run that is being written.

    Metrics are buffered, and a thread writes them every few seconds: a store that is slow or away
    keeps no training waiting, and would else be billed as training. What it does not take while it
    is away waits on this machine's disk, and reaches it in the order of its writing.

    Methods that write raise StoreError when the store refuses what is written; those that read,
    also when it does not answer.
    """

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        experiment_id: str,
        name: str,
        *,
        address: str = "",
        sessions: int = 1,
    ) -> None:
        self._client = client
        self.id = run_id
        self.experiment_id = experiment_id
        self.name = name
        self.sessions = sessions  # this one, and those before it
        self.spent_kg = 0.0  # by those before
        self._earlier: tuple[str | None, Mapping[str, str]] | None = None  # energy.csv, and tags
        self._delivery = Delivery(client, run_id, sessions)
        about = About(run_id=run_id, name=name, address=address, sessions=sessions)
        self._spool = Spool(about)
        self._buffer: list[Point] = []
        self._writing = threading.RLock()
        self._ended = threading.Event()

    def log_params(self, params: Mapping[str, str]) -> None:
        """Writes those params that are not there yet: `mlflow run` has logged what was typed."""
        self._write(Act(kind="params", what=dict(params)))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Writes or overwrites tags, in which an error may have put a secret."""
        self._write(Act(kind="tags", what=dict(tags) | secrecy.hidden(tags)))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Notes metrics with the time of now; they reach the store within seconds."""
        now_ms = int(time.time() * 1000)
        self._buffer += [(key, value, now_ms, step) for key, value in metrics.items()]

    @property
    def unwritten(self) -> list[Point]:
        """Metrics that may not have reached store or disk: key, value, time in ms, and step."""
        return list(self._buffer)

    def write_again(self, points: Sequence[Point]) -> None:
        """Notes what was `unwritten` in an earlier session; nothing is in the store twice."""
        self._buffer += points

    def flush(self) -> None:
        """Writes what is buffered; what was refused stays buffered."""
        with self._writing:
            while batch := self._buffer[:FLUSH_POINTS]:
                self._write(Act(kind="metrics", what=batch))
                del self._buffer[: len(batch)]

    def write_regularly(self) -> None:
        """Flushes until `end`; the body of a thread."""
        while not self._ended.wait(FLUSH_S):
            try:
                self.flush()
                self.deliver()
            except StoreAway:
                continue  # it was said when that began
            except StoreError as error:
                log.warning("metrics of %s could not be written yet: %s", self.name, error)

    def deliver(self) -> None:
        """Writes what waits on the disk.

        Raises:
            StoreAway: something still does.
        """
        with self._writing:
            if waiting := len(self._spool):
                self._spool.deliver(self._delivery.perform)
                log.warning("the store answers again: it has the %d writes of %s that waited",
                            waiting, self.name)  # fmt: skip

    def end(self, status: str, error: str = "", ended_s: float | None = None) -> None:
        """Writes what is left and closes the run, as of now or of an earlier time.

        Raises:
            Undelivered: it went well, and the store has been away for `store.patience_s` since.
        """
        self._ended.set()
        self.flush()
        self.set_tags({STATUS: status} | ({ERROR: error[:5000]} if error else {}))
        self.close(status, ended_s)
        try:
            self._deliver_within(store.patience_s() if status == "FINISHED" else 0.0)
        except StoreAway as away:
            text = f"{away}; {self.name} has ended, and what it came to is kept in "
            text += f"{self._spool.folder}: the next command delivers it"
            if status == "FINISHED":
                raise Undelivered(text) from None
            log.warning("%s", text)
        finally:
            self._spool.close()

    def close(self, status: str, ended_s: float | None = None) -> None:
        """The last thing that is written of a run."""
        ended_ms = int((ended_s or time.time()) * 1000)
        self._write(Act(kind="end", what=[status, ended_ms]))

    def log_dataset(self, name: str, source: str, digest: str, context: str) -> None:
        """Names the data set that this run read."""
        what = {"name": name, "source": source, "digest": digest, "context": context}
        self._write(Act(kind="dataset", what=what))

    def log_folder(self, folder: Path, name: str) -> None:
        """Copies a folder to the run's artifacts; without a name, what is in it."""
        self._write(Act(kind="files", what=name, folder=folder))

    def log_text(self, text: str, name: str) -> None:
        """Writes a text as an artifact."""
        with self._file(name) as path:
            path.write_text(text, encoding="utf-8")

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

    def read_earlier(self) -> None:
        """Reads what the sessions before have spent, while the store answers."""
        with named():
            text = read_text(self._client, self.id, "energy.csv")
            self._earlier = text, self._client.get_run(self.id).data.tags

    def with_earlier(self, measurement: Measurement) -> Measurement:
        """This session's measurement with what the figures of those before it hold."""
        if self._earlier is None:
            self.read_earlier()
        assert self._earlier is not None
        text, tags = self._earlier
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
        with self._file(name) as path:
            figure.savefig(path)

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Writes rows as a table artifact, which the MLflow UI shows as a table.

        MLflow's own `log_table` would append them to those of an earlier session.
        """
        if not rows:
            return
        data = [[None if _is_nan(value) else value for value in row.values()] for row in rows]
        self.log_text(json.dumps({"columns": list(rows[0]), "data": data}), name)
        self._write(Act(kind="table", what=name))

    @contextmanager
    def _file(self, name: str) -> Iterator[Path]:
        """A block that makes one artifact, at the path that it is given."""
        with TemporaryDirectory() as folder:
            path = Path(folder, Path(name).name)
            yield path
            parent = Path(name).parent
            self.log_folder(Path(folder), "" if parent == Path() else parent.as_posix())

    def _write(self, act: Act) -> None:
        """Performs an act, or keeps it for later behind those that wait already."""
        with self._writing:
            if len(self._spool):
                self._keep(act)
                return
            try:
                self._delivery.perform(act)
            except StoreAway as error:
                self._keep(act)
                log.warning("%s; what is written of %s waits in %s",
                            error, self.name, self._spool.folder)  # fmt: skip

    def _keep(self, act: Act) -> None:
        try:
            self._spool.put(act)
        except OSError as error:
            raise StoreAway(
                f"the store is away, and nothing can be kept in {self._spool.folder}: {error}"
            ) from error

    def _deliver_within(self, patience_s: float) -> None:
        until_s = time.monotonic() + patience_s
        while True:
            try:
                self.deliver()
            except StoreAway:
                if time.monotonic() > until_s:
                    raise
                time.sleep(FLUSH_S)
            else:
                return


def _is_nan(value: object) -> bool:
    """What JSON has no word for."""
    return isinstance(value, float) and math.isnan(value)


def read_text(client: MlflowClient, run_id: str, name: str) -> str | None:
    """A text artifact of a run; None where it has none of that name."""
    folder = name.rpartition("/")[0] or None
    with TemporaryDirectory() as copy, of_artifacts():
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
