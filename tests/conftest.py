"""What the tests share: an empty working folder, a migrated store to copy, a small real job."""

import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Before torch is imported anywhere; see entrypoints/options.py. Tests run side by side, and their
# trainings are too small for a second thread to be of use.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_LOGGING_LEVEL"] = "ERROR"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from postgres import Postgres
from servers import S3

from green_tune import job as jobs
from green_tune import nvml
from green_tune.config import TrainConfig
from green_tune.job import Job

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
OURS = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "GREEN_TUNE_STUDY_STORAGE",
        "CUDA_VISIBLE_DEVICES")  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what needs a GPU where there is none; pytest counts it as deselected.

    What takes longest comes first: the many small files then keep both workers busy to the end.
    """
    items.sort(key=lambda item: not item.get_closest_marker("e2e"))
    if nvml.find_gpus():
        return
    without = [item for item in items if item.get_closest_marker("gpu")]
    items[:] = [item for item in items if item not in without]
    config.hook.pytest_deselected(items=without)


def pytest_collection_finish() -> None:
    """What all test files have imported, Python's collector need not look at for every test."""
    gc.freeze()


def pytest_report_header() -> str:
    """Says at the top which hardware the tests ran on."""
    gpus = ", ".join(str(gpu) for gpu in nvml.find_gpus())
    return f"gpu: {gpus or 'none here, so tests marked gpu are deselected'}"


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`tiny` is built once for the session, and not into the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _subnormals() -> Iterator[None]:
    """A training flushes subnormal numbers in its thread; other tests may need them."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in an empty folder, with none of the caller's settings."""
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("GREEN_TUNE_METERS", str(tmp_path / "meters"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def _migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store_uri(_migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty MLflow store in SQLite; copied, since making one takes seconds."""
    shutil.copy(_migrated, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL server, for all tests of the session."""
    server = Postgres()
    yield server
    server.close()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    """A real S3 server, for all tests of a file."""
    server = S3()
    yield server
    server.close()


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """An empty database of its own on that server."""
    return postgres.new_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database for a study, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'optuna.db'}"
    address: str = request.getfixturevalue("postgres_url")
    return address


@pytest.fixture
def make_job() -> Callable[..., Job]:
    """A real job on the CPU, small unless told otherwise."""

    def make(**options: object) -> Job:
        small = {"gpu": "cpu", "max_train_examples": 48, "max_eval_examples": 12, "evals": 2}
        return jobs.prepare(TrainConfig(**(small | options)))  # type: ignore[arg-type]

    return make


@pytest.fixture
def shared() -> Path:
    """Real data sets and a small pretrained model, where the checkout has them beside it."""
    if not SHARED.is_dir():
        pytest.skip("the real data sets are not beside this checkout (../shared/data)")
    return SHARED
