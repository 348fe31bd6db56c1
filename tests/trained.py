"""A store with a real sweep in it, trained once for all tests; each changes a copy of its own."""

import shutil
from collections.abc import Mapping
from contextlib import chdir
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from click import Command
from click.testing import CliRunner

from entrypoints.promote import promote
from entrypoints.sweep import sweep

STUDY = "demo"
SMALL = {"study": STUDY, "trials": "3", "max_train_examples": "40", "max_eval_examples": "12",
         "quality_examples": "0", "gpu": "cpu"}  # fmt: skip


def copied(to: Path, *, promoted: bool = False) -> str:
    """The address of a copy in a folder, maybe with its best, greenest and balanced promoted.

    The files of runs and versions are shared, and only to be read.
    """
    there = _promoted() if promoted else _trained()
    shutil.copy(Path(there.name) / "mlflow.db", to / "mlflow.db")
    return f"sqlite:///{to / 'mlflow.db'}"


def own(to: Path) -> str:
    """The address of a copy whose files are its own as well, to be spoilt; for a fresh folder."""
    from mlflow import MlflowClient
    from sqlalchemy import create_engine, text

    uri = copied(to)
    there = Path(_trained().name)
    shutil.copytree(there / "mlruns", to / "mlruns", ignore=shutil.ignore_patterns("models"))
    engine = create_engine(uri)
    with engine.begin() as store:
        for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
            change = f"UPDATE {table} SET {column} = REPLACE({column}, :old, :new)"
            store.execute(text(change), {"old": str(there), "new": str(to)})
    engine.dispose()
    assert str(to) in MlflowClient(uri).get_experiment("0").artifact_location
    return uri


def trials(uri: str) -> dict[str, str]:
    """The run ids of the sweep's trials by number, and of the sweep itself as such."""
    from mlflow import MlflowClient

    runs = MlflowClient(uri).search_runs(["0"], "tags.`green_tune.study` != ''")
    return {run.data.tags.get("green_tune.trial", "sweep"): run.info.run_id for run in runs}


@cache
def _trained() -> "TemporaryDirectory[str]":
    folder = TemporaryDirectory(prefix="green-tune-trained-")
    _do(sweep, SMALL, Path(folder.name))
    return folder


@cache
def _promoted() -> "TemporaryDirectory[str]":
    folder = TemporaryDirectory(prefix="green-tune-promoted-")
    copied(Path(folder.name))
    _do(promote, {"examples": "0"}, Path(folder.name))
    return folder


def _do(command: Command, asked: Mapping[str, str], folder: Path) -> None:
    """A command with the store in a folder."""
    options = [part for name, text in asked.items() for part in (f"--{name}", text)]
    there = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    with chdir(folder):
        done = CliRunner().invoke(command, options, env=there)
    assert done.exit_code == 0, done.output
