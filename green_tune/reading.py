"""Reading runs back from MLflow: the search for them, and each as a RunRecord.

A door to MLflow beside `run`, which writes one, and `tracking`, which opens and closes them. It
writes nothing, and reads ten thousand runs in seconds and little memory.
"""

import gc
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from sys import intern
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode

from green_tune.delivery import line
from green_tune.errors import ConfigError
from green_tune.query import EXPERIMENT, Query
from green_tune.results import KIND, RunRecord
from green_tune.run import STATUS

PARENT = "mlflow.parentRunId"
PAGE = 250  # runs: larger ones take as long, and more memory
MLFLOWS_OWN = "mlflow."  # what its own tags begin with


def find(client: MlflowClient, query: Query) -> list[RunRecord]:
    """The runs that `query` selects, in all experiments, oldest first; without MLflow's own tags.

    Raises:
        ConfigError: MLflow cannot read the query's own filter; with what it says.
        MlflowException: the store cannot be used.
    """
    with _filter_named(query.filter), _collector_paused():
        found: dict[str, RunRecord] = {}
        for text in query.filters():
            every = filter(query.takes, search(client, [text], _lean))
            # By id: a run that starts meanwhile moves others to the next page as well.
            found |= {record.run_id: record for record in islice(every, query.newest or None)}
    return sorted(found.values(), key=lambda record: record.started)[-query.newest :]


def search(
    client: MlflowClient, filters: Iterable[str], read: Callable[[Any], RunRecord] | None = None
) -> Iterator[RunRecord]:
    """The runs that filters of MLflow select, in all experiments, page by page, newest first."""
    experiments = _experiments(client)
    for text in filters:
        token = None
        while True:
            page = client.search_runs(
                experiments, text, ViewType.ACTIVE_ONLY, max_results=PAGE, page_token=token
            )
            yield from map(read or record, page)
            if not (token := page.token):
                break


def _experiments(client: MlflowClient) -> list[str]:
    found: list[str] = []
    token = None
    while True:
        page = client.search_experiments(page_token=token)
        found += [experiment.experiment_id for experiment in page]
        if not (token := page.token):
            return found


def record(run: Any) -> RunRecord:
    """One run of MLflow as it stands in the store."""
    tags = {**run.data.tags, EXPERIMENT: str(run.info.experiment_id)}
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


def _lean(run: Any) -> RunRecord:
    """A record as one of ten thousand: names and texts that many of them have are kept once."""
    whole = record(run)
    tags = {k: v for k, v in whole.tags.items() if k == EXPERIMENT or not k.startswith(MLFLOWS_OWN)}
    return replace(
        whole,
        params={intern(key): intern(text) for key, text in whole.params.items()},
        metrics={intern(key): value for key, value in whole.metrics.items()},
        tags={intern(key): intern(text) for key, text in tags.items()},
    )


@contextmanager
def _collector_paused() -> Iterator[None]:
    """A block without Python's cyclic garbage collector, which then is as it was before.

    MLflow makes some hundred objects for each run, none of them in a cycle. Whenever enough of
    them are there, the collector looks at every object of the process: more than half of the time
    that reading 10,000 runs took (benchmarks/comparing.py).
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def _filter_named(text: str) -> Iterator[None]:
    """Gives a filter that MLflow cannot read its own name, where a user has written one."""
    try:
        yield
    except MlflowException as error:
        if not text or error.error_code != ErrorCode.Name(INVALID_PARAMETER_VALUE):
            raise
        raise ConfigError(f"filter={text} cannot be read by MLflow: {line(error)}") from None


def _unquoted(text: str) -> str:
    """A param as it was meant; the launcher stores it quoted for the shell."""
    if not text.startswith("'"):
        return text
    try:
        words = shlex.split(text)
    except ValueError:  # of a run that is not ours
        return text
    return words[0] if len(words) == 1 else text
