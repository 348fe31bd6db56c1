"""Made-up records written to a real store, as a run of ours would stand there."""

from collections.abc import Iterable

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from green_tune.results import RunRecord


def write(records: Iterable[RunRecord], uri: str, experiment: str = "Default") -> list[str]:
    """Makes one closed run for each record; returns their new ids."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    place = found.experiment_id if found else client.create_experiment(experiment)
    return [_write(record, client, str(place)) for record in records]


def _write(record: RunRecord, client: MlflowClient, place: str) -> str:
    at_ms = int(record.started.timestamp() * 1000)
    run_id = str(client.create_run(place, at_ms, run_name=record.name).info.run_id)
    client.log_batch(
        run_id,
        metrics=[Metric(key, value, at_ms, 0) for key, value in record.metrics.items()],
        params=[Param(key, text) for key, text in record.params.items()],
        tags=[RunTag(key, text) for key, text in record.tags.items()],
    )
    client.set_terminated(run_id, record.status)
    return run_id
