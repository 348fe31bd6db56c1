"""What an error of a store is called, whichever library it comes from."""

import pytest
from botocore.exceptions import EndpointConnectionError
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import UNAUTHENTICATED

from green_tune import store
from green_tune.delivery import KEYS, named, of_artifacts
from green_tune.errors import AdapterError, StoreAway

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
