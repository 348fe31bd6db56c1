"""How one act is written to MLflow, and what an error of it means: refused, or nobody there.

A door to MLflow beside `run`, which says what is written. Every act can be performed again: what
is there already stays as it is.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, ErrorCode
from sqlalchemy.exc import SQLAlchemyError

from green_tune import secrecy, store
from green_tune.errors import GreenTuneError, StoreAway, StoreError
from green_tune.spool import Act

AT_ONCE = 100  # params in one call, at most
TABLES = "mlflow.loggedArtifacts"  # those that its UI shows as tables
# What is wrong with a request stays wrong. A login that is refused, a conflict or a limit do not.
REFUSED, NO_LOGIN = {400, 404}, 401
KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
UNANSWERED = re.compile(r"API request to (\w+://[^/]+)\S* failed with .*\(Caused by (.*)\)")
# A traceback for each write that a database misses, a line for each attempt: one of ours says it.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


class Delivery:
    """Writes the acts of one run; `sessions` says how many have written to it, this one included.

    Every method raises StoreAway when nobody answers, and StoreError when what was sent is refused.
    """

    def __init__(self, client: MlflowClient, run_id: str, sessions: int = 1) -> None:
        self._client = client
        self._run_id = run_id
        self.sessions = sessions
        self._last_steps: dict[str, int] = {}  # of curves that sessions before have logged

    def perform(self, act: Act) -> None:
        """Writes one act."""
        with named():
            twice(self._perform, act)

    def _perform(self, act: Act) -> None:
        match act.kind:
            case "params":
                self._params(act.what)
            case "tags":
                tags = [RunTag(key, text) for key, text in act.what.items()]
                self._client.log_batch(self._run_id, tags=tags)
            case "metrics":
                self._metrics([Metric(*point) for point in act.what])
            case "dataset":
                self._dataset(**act.what)
            case "files":
                self._files(act)
            case "table":
                self._table(act.what)
            case "end":
                self._client.set_terminated(self._run_id, *act.what)

    def _params(self, params: Mapping[str, str]) -> None:
        """Those that are not there yet: MLflow would drop the whole call for one that differs."""
        there = self._client.get_run(self._run_id).data.params
        new = [Param(key, value) for key, value in params.items() if key not in there]
        for start in range(0, len(new), AT_ONCE):
            self._client.log_batch(self._run_id, params=new[start : start + AT_ONCE])

    def _metrics(self, points: Sequence[Metric]) -> None:
        if new := [point for point in points if not self._is_there(point)]:
            self._client.log_batch(self._run_id, metrics=new)

    def _is_there(self, point: Metric) -> bool:
        """True for steps of a curve that are done once more, to the bit as they were before.

        Figures have no steps, and a point that is equal to the last bit and millisecond MLflow
        itself takes for the same.
        """
        if self.sessions == 1 or not point.step:
            return False
        if point.key not in self._last_steps:
            history = self._client.get_metric_history(self._run_id, point.key)
            self._last_steps[point.key] = max((there.step for there in history), default=-1)
        return bool(point.step <= self._last_steps[point.key])

    def _dataset(self, name: str, source: str, digest: str, context: str) -> None:
        described = json.dumps({"source": source})
        dataset = Dataset(name, digest, source_type="green-tune", source=described)
        tags = [InputTag("mlflow.data.context", context)]
        self._client.log_inputs(self._run_id, datasets=[DatasetInput(dataset, tags)])

    def _files(self, act: Act) -> None:
        with of_artifacts():
            self._client.log_artifacts(self._run_id, str(act.folder), act.what or None)

    def _table(self, name: str) -> None:
        """Has the UI show an artifact as a table."""
        tables = json.loads(self._client.get_run(self._run_id).data.tags.get(TABLES, "[]"))
        shown = {"path": name, "type": "table"}
        if shown not in tables:
            self._client.set_tag(self._run_id, TABLES, json.dumps([*tables, shown]))


@contextmanager
def named(what: str = "the tracking store") -> Iterator[None]:
    """Gives a store's error its own name, whichever library it comes from."""
    try:
        yield
    except MlflowException as error:
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
        kind = StoreError if status in REFUSED else StoreAway
        text = line(error)
        fix = f"; set {KEYS if 's3://' in text else store.LOGIN}" if status == NO_LOGIN else ""
        raise kind(f"{what} cannot be used: {text}{fix}") from error
    except (SQLAlchemyError, OSError) as error:
        raise StoreAway(f"{what} cannot be used: {line(error)}") from error


@contextmanager
def of_artifacts() -> Iterator[None]:
    """As `named`, for artifacts, of which each kind of store raises what its library does."""
    try:
        with named("the store of artifacts"):
            yield
    except GreenTuneError:
        raise
    except Exception as error:
        raise StoreAway(f"the store of artifacts cannot be used: {line(error)}") from error


def twice(write: Callable[..., None], *given: Any) -> None:
    """A write, again if it was refused: of two that make a row at once, a database takes one."""
    try:
        write(*given)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(BAD_REQUEST):  # which MLflow makes of a broken rule
            raise
        write(*given)


def line(error: Any) -> str:
    """What an error says, in one line; of requests without an answer, what matters of it."""
    text = secrecy.hide(str(error).strip().split("\n")[0])  # addresses may hold a password
    if found := UNANSWERED.match(text):
        reason = re.split(r": |[('\"]+", found[2].rstrip("\"')"))[-1]
        return f"{store.address(found[1])} does not answer ({reason})"
    return text
