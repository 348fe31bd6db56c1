"""What an error of a store is called, whichever library it comes from."""

import pytest
from botocore.exceptions import EndpointConnectionError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, UNAUTHENTICATED

from green_tune import store
from green_tune.delivery import KEYS, Delivery, named, of_artifacts
from green_tune.errors import AdapterError, StoreAway
from green_tune.spool import Act

REFUSED = "The request signature we calculated does not match"


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("You are not authenticated", store.LOGIN),
        (f"Failed to list artifacts in s3://adapters/direct: {REFUSED}", KEYS),
    ],
)
def test_a_login_that_is_refused_says_whose_it_is(said: str, fix: str) -> None:
    with pytest.raises(StoreAway) as caught, of_artifacts():
        raise MlflowException(said, UNAUTHENTICATED)
    assert str(caught.value) == f"the store of artifacts cannot be used: {said}; set {fix}"
    with pytest.raises(StoreAway, match="the tracking store cannot be used"), named():
        raise MlflowException(said, UNAUTHENTICATED)


def test_a_bucket_that_does_not_answer_is_the_store_of_artifacts_being_away() -> None:
    why = "the store of artifacts cannot be used: Could not connect"
    with pytest.raises(StoreAway, match=why), of_artifacts():
        raise EndpointConnectionError(endpoint_url="http://s3:9000")


def test_an_error_of_ours_keeps_its_name() -> None:
    with pytest.raises(AdapterError), of_artifacts():
        raise AdapterError("a file whose name leads out of the folder")


def test_a_data_set_that_another_run_names_at_the_same_moment_is_named_again(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one was faster by a moment, as the database says in its way."""
    client, refusals = MlflowClient(store_uri), [MlflowException("Unique", BAD_REQUEST)]
    write = client.log_inputs

    def log_inputs(*given: object, **named: object) -> None:
        if refusals:
            raise refusals.pop()
        write(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(client, "log_inputs", log_inputs)
    run_id = client.create_run("0").info.run_id
    what = {"name": "qa", "source": "sample", "digest": "abc", "context": "training"}
    Delivery(client, run_id).perform(Act(kind="dataset", what=what))
    inputs = client.get_run(run_id).inputs
    assert inputs is not None
    assert [each.dataset.name for each in inputs.dataset_inputs] == ["qa"]
