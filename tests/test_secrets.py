"""Secrets are taken out of what is said, whoever says it, and refused where they are typed."""

import io
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import boto3  # type: ignore[import-untyped]
import click
import optuna
import pytest
from botocore.config import Config
from click.testing import CliRunner
from huggingface_hub import constants
from mlflow import MlflowClient
from optuna.trial import TrialState

from entrypoints.compare import compare
from entrypoints.doctor import doctor
from entrypoints.evaluate import evaluate
from entrypoints.grid import grid
from entrypoints.predict import predict
from entrypoints.promote import promote
from entrypoints.pull import pull
from entrypoints.quote import quote as quote_command
from entrypoints.sweep import sweep
from entrypoints.train import train
from green_tune import checkpoint, hub, secrecy, store
from green_tune.delivery import line, named
from green_tune.errors import ModelError, StoreError
from green_tune.job import Job
from green_tune.secrecy import HIDDEN, Veil, hide, holds
from green_tune.space import SPACE
from green_tune.study import open_study
from green_tune.tracking import Tracker

ROOT = Path(__file__).parents[1]
SECRET = "hunter2/%{x}:y"  # with all that an address has to escape
ESCAPED = quote(SECRET, safe="")
CLOSED = "127.0.0.1:1"  # where nobody listens
SETTINGS: dict[str, Callable[[], str]] = {
    "MLFLOW_TRACKING_URI": store.tracking_uri,
    "MLFLOW_REGISTRY_URI": lambda: store.registry_uri("sqlite:///mlflow.db"),
    "GREEN_TUNE_STUDY_STORAGE": store.study_url,
}
HEXES = "0123456789abcdef"
COMMANDS = (
    train, sweep, grid, quote_command, compare, promote, pull, predict, evaluate, doctor,
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN",
        "PGPASSWORD", "MYSQL_PWD", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_CONNECTION_STRING",
        "MLFLOW_FLASK_SERVER_SECRET_KEY", "GITHUB_TOKEN", "WANDB_API_KEY",
    ],
)  # fmt: skip
def test_what_a_variable_keeps_secret_is_hidden_in_all_its_forms(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, f"{SECRET}\r")  # as a file from Windows leaves it
    for form in (SECRET, ESCAPED, repr(f"{SECRET}\r"), quote(f"{SECRET}\r", safe="")):
        assert hide(f"the header {form} is no header").count("hunter2") == 0
        assert holds(form)


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "HTTPS_PROXY", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize(
    ("address", "secret"),
    [
        (f"http://me:{ESCAPED}@host:5000/path", SECRET),
        ("http://me:hunter2@host", "hunter2"),
        (f"http://{HEXES * 2}@host", HEXES * 2),
        ("http://host/path?user=me&password=hunter2", "hunter2"),
        ("http://host/?X-Amz-Signature=hunter2&x=1", "hunter2"),
    ],
)
def test_what_an_address_keeps_secret_is_hidden_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, name: str, address: str, secret: str
) -> None:
    monkeypatch.setenv(name, address)
    for said in (f"no answer from {address}!", f"wrong: {secret}!", f"{quote(secret)} is wrong"):
        assert HIDDEN in hide(said)
        assert secret not in hide(said)
        assert quote(secret, safe="") not in hide(said)
    assert "host" in hide(address)


@pytest.mark.parametrize("address", ["http://me:hun/ter#2@x@host/db", "//me:hun/ter#2@x@host/db"])
def test_a_password_that_nobody_has_escaped_is_hidden(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("GREEN_TUNE_STUDY_STORAGE", address)
    for said in (address, "no host hun/ter#2@x here"):
        assert "ter#2" not in hide(said)


@pytest.mark.parametrize(
    "token",
    [f"hf_{HEXES * 2}ab", f"ghp_{HEXES * 2}", f"github_pat_{HEXES}_{HEXES}", f"glpat-{HEXES}xyz",
     "AKIAIOSFODNN7EXAMPLE"],
)  # fmt: skip
def test_a_token_is_known_by_its_looks(token: str) -> None:
    assert hide(f"model={token}/x") == f"model={HIDDEN}/x"


@pytest.mark.parametrize(
    "innocent",
    [
        "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=x&viewStateShareKey=1b0ecf0b",
        "sqlite:////home/me@work/mlflow.db",
        "https://huggingface.co/@me/model",
        "hf_internal_testing/tiny-random-llama-of-many-letters",
        "password authentication failed for user tuner",
        "mail me@example.org, the token count is 12, basic attention",
        "runs:/0123456789abcdef0123456789abcdef/adapter",
    ],
)
def test_what_is_no_secret_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch, innocent: str) -> None:
    monkeypatch.setenv("GREEN_TUNE_STUDY_STORAGE", "postgresql://tuner@host/db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////home/me@work/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "12")  # too short to be left out anywhere
    assert hide(innocent) == innocent
    assert not holds(innocent)


def test_only_tags_that_hold_a_secret_are_written_anew() -> None:
    tags = {"mlflow.source.name": "https://me:hunter2@host/x.git", "mlflow.user": "me"}
    assert secrecy.hidden(tags) == {"mlflow.source.name": f"https://{HIDDEN}@host/x.git"}


def test_a_traceback_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    out = io.StringIO()
    error = RuntimeError(f"no {SECRET}")
    error.__cause__ = ValueError(f"{SECRET} is bad")
    traceback.print_exception(error, file=Veil(out))
    assert "RuntimeError: no ***" in out.getvalue()
    assert "ValueError: *** is bad" in out.getvalue()
    assert "hunter2" not in out.getvalue()


def test_a_bug_keeps_its_traceback_and_shows_no_secret() -> None:
    """Python itself prints it, when everything of ours is over."""
    code = (
        "import os, sys\nfrom green_tune.secrecy import Veil\nsys.stderr = Veil(sys.stderr)\n"
        "raise RuntimeError('no ' + os.environ['HF_TOKEN'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "HF_TOKEN": SECRET}, text=True,
        cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    assert done.stderr.endswith("RuntimeError: no ***\n")
    assert "line 4" in done.stderr


def test_a_veiled_stream_is_otherwise_the_stream() -> None:
    out = io.StringIO()
    veil = Veil(out)
    veil.writelines(["plain", " ", "http://me:hunter2@host"])
    assert veil.write("four") == len("four")
    assert out.getvalue() == f"plain http://{HIDDEN}@hostfour"
    assert veil.getvalue() == out.getvalue()


@pytest.fixture
def _one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.mark.usefixtures("_one_try")
@pytest.mark.parametrize(
    "uri", [f"http://me:{ESCAPED}@{CLOSED}", f"http://me:{SECRET}@{CLOSED}", f"me:{SECRET}@host"]
)
def test_mlflows_errors_quote_no_password(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StoreError) as caught, named():
        MlflowClient(uri).search_experiments()
    assert "the tracking store cannot be used" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.usefixtures("_one_try")
def test_a_token_that_is_no_header_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", f"{SECRET}\r")
    with pytest.raises(StoreError) as caught, named():
        MlflowClient(f"http://{CLOSED}").search_experiments()
    assert "header" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_an_artifact_stores_errors_quote_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://me:{ESCAPED}@{CLOSED}"
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", address)
    client = boto3.client(
        "s3", endpoint_url=address, aws_access_key_id="key", aws_secret_access_key=SECRET,
        region_name="us-east-1", config=Config(retries={"total_max_attempts": 1}),
    )  # fmt: skip
    with pytest.raises(Exception, match="Could not connect") as caught:
        client.list_buckets()
    assert "hunter2" in str(caught.value)  # so this is worth a test
    assert "hunter2" not in line(caught.value)
    assert CLOSED in line(caught.value)


def test_a_mirror_of_the_hub_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://me:{ESCAPED}@{CLOSED}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ModelError) as caught:
        hub._ask(_refused, "model me/model", ModelError, "main")
    assert f"http://{HIDDEN}@{CLOSED}" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def _refused() -> None:
    raise ConnectionError(f"http://me:{ESCAPED}@{CLOSED} refused")


@pytest.mark.parametrize(("setting", "address_of"), SETTINGS.items(), ids=SETTINGS)
@pytest.mark.parametrize(
    "address",
    [
        "http://me:hunter2@:5000",
        "http://me:hunter2@host:port",
        "http://me:hunter2@[::1",
        "http://me:p@hunter2@127.0.0.1:1",
        "http://me:p@hunter2/x@127.0.0.1:1",
        "http://me:1/hunter2@127.0.0.1:1",
        "http://me:1#hunter2@127.0.0.1:1",
        "http://me:1?hunter2@127.0.0.1:1",
        "//me:hunter2@127.0.0.1:1",
        "postgresql://host:port/db?password=hunter2",
        "postgresql://me:hunter2@127.0.0.1:1/db?password=hunter2",
        "http://me:hunter2@no host/",
    ],
)
def test_an_address_that_leads_nowhere_is_refused_without_its_password(
    monkeypatch: pytest.MonkeyPatch, setting: str, address_of: Callable[[], str], address: str
) -> None:
    monkeypatch.setenv(setting, address)
    with pytest.raises(StoreError) as caught:
        store.check_reachable(address_of())
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert setting in str(caught.value)


def text_options(command: click.Command) -> list[str]:
    return [str(option.name) for option in command.params]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.name))
@pytest.mark.parametrize(
    "typed", ["https://me:hunter2@host/x", "https://host/x?token=hunter2", f"hf_{HEXES * 2}ab"]
)
def test_a_secret_among_the_options_is_refused_whichever_it_is(
    command: click.Command, typed: str
) -> None:
    for name in text_options(command):
        done = CliRunner().invoke(command, [f"--{name}", typed])
        assert done.exit_code == 2
        assert done.output.startswith(f"error: {name}= holds a password or a token")
        assert done.output.count("\n") == 1
        assert typed not in done.output


def test_an_option_that_repeats_a_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    done = CliRunner().invoke(predict, ["--text", f"my token is {SECRET}"])
    assert done.exit_code == 2
    assert done.output.startswith("error: text= holds")


def test_a_run_notes_its_error_and_its_source_without_secrets(
    monkeypatch: pytest.MonkeyPatch, store_uri: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("MLFLOW_RUN_CONTEXT", json.dumps({"from": f"git@{SECRET}"}))
    with pytest.raises(RuntimeError), Tracker(store_uri).run("train", "x") as run:
        raise RuntimeError(f"no {SECRET}")
    tags = MlflowClient(store_uri).get_run(run.id).data.tags
    assert tags["green_tune.error"] == "RuntimeError: no ***"
    assert tags["from"] == "git@***"


def test_a_study_notes_why_a_trial_failed_without_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    own = open_study(url, "s", SPACE, identity={"task": "qa"}, sampler="random")
    for end in (own.fail, lambda trial, why: own.give_up(trial, why, lambda run_id: None)):
        trial = own.claim(9, lambda run_id: None, lambda values: "")
        assert not isinstance(trial, str)
        end(trial, f"no {SECRET}")
    ended = optuna.load_study(study_name="s", storage=url).get_trials(states=[TrialState.FAIL])
    assert [trial.user_attrs["reason"] for trial in ended] == ["no ***", "no ***"]


def test_a_checkpoint_is_its_owners_alone(make_job: Callable[..., Job]) -> None:
    umask = os.umask(0)
    try:
        held = checkpoint._made(make_job(), "0" * 32)
    finally:
        os.umask(umask)
    assert held.folder.stat().st_mode & 0o077 == 0
    held.remove()


def test_addresses_are_compared_without_their_passwords() -> None:
    """As a checkpoint and what waits for a store keep it on disk."""
    for query in ("", "?password=hunter2"):
        kept = store.address(f"postgresql://me:{ESCAPED}@host:5432/db{query}")
        assert kept == "postgresql://host:5432/db"
