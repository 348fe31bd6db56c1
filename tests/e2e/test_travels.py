"""Adapters that travel: from a sweep, over a server and S3, to where nothing of ours is installed.

One MLflow server on PostgreSQL with its artifacts in S3, one sweep and one promotion serve all.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import program
import pytest
import torch
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from peft import AutoPeftModelForCausalLM
from postgres import Postgres
from servers import BUCKET, S3, Mlflow
from transformers import AutoModelForCausalLM, AutoTokenizer

from entrypoints.predict import predict
from entrypoints.pull import pull
from green_tune import attention, data, facts, parcel, quality, tasks, training
from green_tune import job as jobs
from green_tune.config import TrainConfig
from green_tune.registry import Registry
from green_tune.training import FineTuner
from green_tune.versions import ADDRESS

pytestmark = pytest.mark.e2e

FEW = {
    "gpu": "cpu", "country": "FRA", "max_train_examples": "24", "max_eval_examples": "8",
    "evals": "1",
}  # fmt: skip
LEARNING = {  # so that not all predictions are the same
    "max_train_examples": "320", "epochs": "3", "batch_size": "4", "learning_rate": "3e-3",
}  # fmt: skip
NAME = "tiny-sentiment"
PATIENCE_S = 120.0
IDS = [[1, 50, 51, 52, 53, 54, 55, 56]]  # tokens of any base model here
TOLERANCE = 1e-4  # of logits, between an adapter beside its base model and merged into it
OURS = ("green_tune", "green-tune", "entrypoints", "__editable__")
SITES = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})

STRANGER = """
import sys
sys.path.append(sys.argv[1])

import hashlib, importlib.util, json
assert importlib.util.find_spec("green_tune") is None
assert importlib.util.find_spec("entrypoints") is None

import mlflow, pandas, torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

asked = json.load(sys.stdin)
adapter = asked["folder"] + "/adapter"
base = json.load(open(adapter + "/recipe.json"))["base"]["place"]

def logits(model):
    found = model.eval()(torch.tensor(asked["ids"])).logits
    return hashlib.sha256(found.detach().numpy().tobytes()).hexdigest()

told = {}
for place in (asked["folder"], asked["uri"]):
    model = mlflow.pyfunc.load_model(place)
    told[place] = model.predict(asked["texts"])
    told["frame of " + place] = model.predict(pandas.DataFrame({"text": asked["texts"]}))
plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
told["plain"] = logits(PeftModel.from_pretrained(plain, adapter))
told["auto"] = logits(AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32))
told["ours"] = sorted(name for name in sys.modules if "green_tune" in name)
print(json.dumps(told))
"""


class House:
    """A copy of the program, and the commands that a user gives in it."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.client = folder, MlflowClient(uri)
        program.copy_to(folder)
        self.environment = {name: text for name, text in os.environ.items() if name[:4] != "AWS_"}
        self.environment |= {
            "MLFLOW_TRACKING_URI": uri,
            "GREEN_TUNE_STUDY_STORAGE": f"sqlite:///{folder / 'optuna.db'}",
            "GREEN_TUNE_METERS": str(folder / "meters"),
            "XDG_STATE_HOME": str(folder / "state"),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def launch(self, entry: str, **asked: str) -> str:
        """A whole command by `mlflow run`; what it said."""
        words = [word for key, text in asked.items() for word in ("-P", f"{key}={text}")]
        return self._done(["mlflow", "run", ".", "-e", entry, "--env-manager", "local", *words])

    def run(self, entry: str, **asked: str) -> str:
        """The same without the launcher, which takes five seconds."""
        words = [word for key, text in asked.items() for word in (f"--{key}", text)]
        return self._done([sys.executable, "-m", f"entrypoints.{entry}", *words])

    def _done(self, command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, text=True, capture_output=True,
            timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def trained(self, **asked: str) -> str:
        """The id of a new training's run."""
        said = self.run("train", **FEW | {"quality_examples": "0"} | asked)
        (run_id,) = re.findall("runs:/([0-9a-f]{32})/adapter", said)
        return str(run_id)

    def version(self, name: str, alias: str) -> ModelVersion:
        return self.client.get_model_version_by_alias(name, alias)

    def run_of(self, version: ModelVersion) -> Run:
        """The run that an adapter is from; these tests have none from on the way."""
        run_id, _, folder = version.tags[ADDRESS].removeprefix("runs:/").partition("/")
        assert (folder, run_id) == ("adapter", version.run_id)
        return self.client.get_run(run_id)


@pytest.fixture(scope="module")
def server(postgres: Postgres, s3: S3) -> Iterator[Mlflow]:
    """MLflow's server, which alone has the keys of the store."""
    server = Mlflow(database(postgres), s3)
    yield server
    server.close()


def database(postgres: Postgres) -> str:
    """An empty one, with its driver by name, as what SQLAlchemy takes by itself varies."""
    return str(postgres.new_database()).replace("://", "+psycopg2://")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, server: Mlflow) -> House:
    return House(tmp_path_factory.mktemp("house"), server.url)


@pytest.fixture(scope="module")
def promoted(house: House) -> ModelVersion:
    """The best of a sweep of three, promoted."""
    few = FEW | LEARNING | {"accumulation_steps": "1", "warmup_steps": "5"}
    house.run("sweep", trials="3", study="s", lora_rank="8..32", **few)
    said = house.launch("promote", study="s", examples="4")
    assert f"Next: mlflow run . -e pull -P adapter={NAME}@best" in said
    return house.version(NAME, "best")


@pytest.fixture(scope="module")
def pulled(house: House, promoted: ModelVersion) -> Path:
    """Its version's folder, pulled as a user does."""
    said = house.launch("pull", adapter=f"{NAME}@best")
    folder = house.folder / "adapters" / f"{NAME}-v{promoted.version}"
    assert "checksums verified" in said
    assert f"mlflow.pyfunc.load_model('adapters/{folder.name}')" in said
    return folder


@pytest.fixture(autouse=True)
def _client(server: Mlflow, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process has the server's address as well, no keys, and the commands' one thread."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True, kw_only=True)
class Witness:
    """A training process at its end, with its model still in memory, and what it has saved."""

    tuner: FineTuner
    adapter: Path

    @classmethod
    def of(cls, run: Run, folder: Path) -> "Witness":
        """The training of a run once more; whether it is the same one, the bytes say."""
        names = {spec.name for spec in fields(TrainConfig)}
        asked = {name: text for name, text in run.data.params.items() if name in names}
        tuner = training.load(jobs.prepare(TrainConfig.parse(asked)))
        tuner.fit()
        tuner.save(folder)
        return cls(tuner=tuner, adapter=folder)

    def predictions(self, split: data.Split) -> list[str]:
        """What this process predicts, in the way in which it measures its own quality."""
        labels = self.tuner.job.task.quality == "labels"
        ask = quality._weighed if labels else quality._generated
        with quality._inference(self.tuner):
            return list(ask(self.tuner, split.examples).values())

    def logits(self) -> str:
        base = self.tuner.loss.base
        with attention.stock(base), torch.inference_mode():
            return fingerprint(self.tuner.model.eval())

    def check_same(self, pulled: Path) -> None:
        for name in (parcel.WEIGHTS, parcel.RECIPE):
            mine, theirs = self.adapter / name, pulled / parcel.ADAPTER / name
            assert mine.read_bytes() == theirs.read_bytes(), name
        assert settings(self.adapter) == settings(pulled / parcel.ADAPTER)


def settings(adapter: Path) -> dict[str, Any]:
    """An adapter's config; the order of its layers' names is another in each process."""
    found: dict[str, Any] = json.loads((adapter / parcel.CONFIG).read_text())
    return found | {"target_modules": sorted(found["target_modules"])}


def fingerprint(model: Any) -> str:
    """Of a model's logits, bit by bit."""
    found = model(torch.tensor(IDS)).logits
    return hashlib.sha256(found.detach().numpy().tobytes()).hexdigest()


def split_of(task: str, where: str = "sample", most: int = 24) -> data.Split:
    return data.load_split(tasks.resolve(task), where, "validation", most=most)


def inputs_of(split: data.Split, task: str) -> list[dict[str, str]]:
    """The rows as a user gives them, without the answers."""
    names = tasks.resolve(task).fields[:-1]
    return [{name: row[name] for name in names} for row in split.rows]


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that is installed here but green-tune, as links."""
    folder = tmp_path_factory.mktemp("strangers")
    for site in map(Path, SITES):
        for path in site.iterdir():
            if not path.name.startswith(OURS) and path.suffix != ".pth":
                (folder / path.name).symlink_to(path)
    return folder


def told_by_a_stranger(links: Path, uri: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What MLflow and peft alone make of an adapter, where no pickle may be read."""
    kept = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    own = {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", STRANGER, str(links)], input=json.dumps(asked),
        env=kept | own, text=True, capture_output=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_an_adapter_answers_without_green_tune_as_it_did_in_its_training_process(
    house: House, promoted: ModelVersion, pulled: Path, strangers: Path, tmp_path: Path
) -> None:
    witness = Witness.of(house.run_of(promoted), tmp_path / "trained")
    witness.check_same(pulled)
    split = split_of("sentiment")
    expected, texts = witness.predictions(split), [str(row["text"]) for row in split.rows]
    assert len(set(expected)) > 1
    uri = f"models:/{NAME}@best"
    asked = {"folder": str(pulled), "uri": uri, "texts": texts, "ids": IDS}
    told = told_by_a_stranger(strangers, house.environment["MLFLOW_TRACKING_URI"], asked)
    for place in (str(pulled), uri):
        assert told[place] == told[f"frame of {place}"] == expected
    assert told["plain"] == told["auto"] == witness.logits()
    assert told["ours"] == ["green_tune_predictor"]
    again = CliRunner().invoke(pull, ["--adapter", f"{NAME}@best", "--output", str(pulled)])
    assert "is there already, whole" in again.stderr  # though MLflow has compiled its code


def test_the_command_predicts_a_file_as_the_training_process_does(
    house: House, promoted: ModelVersion, tmp_path: Path
) -> None:
    split = split_of("sentiment")
    expected = Witness.of(house.run_of(promoted), tmp_path / "trained").predictions(split)
    rows = [{"id": str(number), "text": row["text"]} for number, row in enumerate(split.rows)]
    given, made = tmp_path / "given.jsonl", tmp_path / "made.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    house.run("predict", adapter=NAME, input=str(given), output=str(made))
    answered = [json.loads(line) for line in made.read_text().splitlines()]
    assert answered == [
        row | {"prediction": text} for row, text in zip(rows, expected, strict=True)
    ]


@pytest.mark.parametrize("task", ["qa", "summarization"])
def test_generated_answers_are_the_same_after_the_trip(
    house: House, task: str, tmp_path: Path
) -> None:
    run_id = house.trained(task=task, **LEARNING)
    house.run("promote", rule=run_id, alias="mine", examples="0")
    pulled = tmp_path / "pulled"
    done = CliRunner().invoke(pull, ["--task", task, "--max_g", "50", "--output", str(pulled)])
    assert done.exit_code == 0, done.output
    assert f"tiny-{task}/1 (mine): {pulled}" in done.stdout
    witness = Witness.of(house.client.get_run(run_id), tmp_path / "trained")
    witness.check_same(pulled)
    split = split_of(task, most=6)
    expected = witness.predictions(split)
    assert any(expected)
    assert predicted(pulled, inputs_of(split, task), tmp_path) == expected


def predicted(adapter: Path | str, inputs: Sequence[Mapping[str, str]], folder: Path) -> list[str]:
    """By the command `predict`, in this process."""
    given, made = folder / "given.jsonl", folder / "made.jsonl"
    given.write_text("".join(json.dumps(one) + "\n" for one in inputs))
    asked = ["--adapter", str(adapter), "--input", str(given), "--output", str(made)]
    done = CliRunner().invoke(predict, asked)
    assert done.exit_code == 0, done.output
    return [json.loads(line)["prediction"] for line in made.read_text().splitlines()]


def test_a_client_that_has_the_keys_pulls_from_s3_itself(
    postgres: Postgres, s3: S3, promoted: ModelVersion, pulled: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    server = Mlflow(database(postgres), s3, proxied=False)
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        for name, text in s3.environment.items():
            monkeypatch.setenv(name, text)
        version = handed_over(server, promoted, pulled)
        assert version.source.startswith("models:/m-")
        target = tmp_path / "pulled"
        done = CliRunner().invoke(pull, ["--adapter", NAME, "--output", str(target)])
        assert done.exit_code == 0, done.output
        assert contents(target) == contents(pulled)
        files = Stored(s3, stored(server.url, NAME, version.number))
        assert files.files == contents(pulled)
        weights = f"{parcel.ADAPTER}/{parcel.WEIGHTS}"
        wrong = {weights: flipped(files.files[weights], 1000), "adapter/..%2fx": PICKLE}
        for name, found in wrong.items():
            with files.having(name, found):
                asked = ["--adapter", NAME, "--output", str(tmp_path / "changed")]
                check_refused(CliRunner().invoke(pull, asked), Path(name).name)
        assert not (tmp_path / "changed").exists()
    finally:
        server.close()


def handed_over(server: Mlflow, promoted: ModelVersion, pulled: Path) -> Any:
    """The same version, registered by a client in another server's registry."""
    registry, folder = Registry(server.url), pulled.with_name("handed-over")
    shutil.copytree(pulled, folder, ignore=shutil.ignore_patterns("__pycache__"))
    run = MlflowClient(server.url).create_run("0")
    tags = {name: text for name, text in promoted.tags.items() if not name.startswith("mlflow.")}
    return registry.register(
        promoted.name, folder, run.info.run_id, tags=tags, description=promoted.description or ""
    )


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, but for what Python has compiled."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def stored(uri: str, name: str, number: int | str) -> str:
    """Where S3 has a version's files."""
    place: str = MlflowClient(uri).get_model_version_download_uri(name, str(number))
    for root in (f"s3://{BUCKET}/", "mlflow-artifacts:/"):
        if place.startswith(root):
            return place.replace(root, "" if root.startswith("s3") else "mlflow/", 1)
    raise AssertionError(place)


def flipped(found: bytes, at: int) -> bytes:
    """One bit of one byte is another."""
    changed = bytearray(found)
    changed[at] ^= 1
    return bytes(changed)


def check_refused(done: Result, *said: str) -> None:
    """Exit code 2, and one line."""
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for text in said:
        assert text in line


class Stored:
    """A version's files in S3, to tamper with by the store's own protocol."""

    def __init__(self, s3: S3, prefix: str) -> None:
        self._prefix = prefix
        self._client = boto3.client(
            "s3", endpoint_url=s3.url, aws_access_key_id=s3.key, aws_secret_access_key=s3.secret,
            region_name="us-east-1",
        )  # fmt: skip
        self.files = {
            name.removeprefix(f"{prefix}/"): Path(s3.path(name)).read_bytes()
            for name in s3.names()
            if name.startswith(f"{prefix}/")
        }

    @contextmanager
    def having(self, name: str, found: bytes | None) -> Iterator[None]:
        """A block in which a file is another one, or not there."""
        self._put(name, found)
        try:
            yield
        finally:
            self._put(name, self.files.get(name))

    def _put(self, name: str, found: bytes | None) -> None:
        key = f"{self._prefix}/{name}"
        if found is None:
            self._client.delete_object(Bucket=BUCKET, Key=key)
        else:
            self._client.put_object(Bucket=BUCKET, Key=key, Body=found)


PICKLE = b"cos\nsystem\n(S'false'\ntR."
ADDED = {
    "adapter/evil.pkl": "evil.pkl",
    "adapter/pytorch_model.bin": "pytorch_model.bin",
    "evil.pkl": "evil.pkl",
    "code/evil.py": "evil.py",
    "adapter/deep/er/x": "adapter/deep",
    "adapter/..%2fx": "leads out of the folder",
    "..%2f..%2fx": "leads out of the folder",
    "%2e%2e/x": "leads out of the folder",
}


def wrongs(files: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | None, str]]:
    """What may become of a version's files in a store, and what has to be said of it."""
    for name, found in files.items():
        yield name, flipped(found, len(found) // 2), Path(name).name
    for name in (parcel.MANIFEST, parcel.MLMODEL, f"{parcel.ADAPTER}/{parcel.WEIGHTS}"):
        yield name, files[name][:-1], Path(name).name
        yield name, b"", Path(name).name
        yield name, None, f"incomplete, it lacks {name}"
    for name, said in ADDED.items():
        yield name, PICKLE, said


def pull_in(folder: Path) -> Result:
    """Into an empty folder; whatever is written there or for the moment, the caller can see."""
    target = folder / "here" / "pulled"
    return CliRunner().invoke(pull, ["--adapter", f"{NAME}@best", "--output", str(target)])


def test_what_was_tampered_with_in_the_store_is_refused_and_leaves_nothing(
    s3: S3, server: Mlflow, promoted: ModelVersion, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("here", "for-the-moment"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "for-the-moment"))
    everything = sorted(tmp_path.rglob("*"))
    version = Stored(s3, stored(server.url, NAME, promoted.version))
    assert version.files.keys() == parcel.OF_VERSION
    for name, found, said in wrongs(version.files):
        with version.having(name, found):
            check_refused(pull_in(tmp_path), said)
        assert sorted(tmp_path.rglob("*")) == everything, name
    done = pull_in(tmp_path)
    assert done.exit_code == 0, done.output
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["pulled"]
    assert contents(tmp_path / "here" / "pulled") == version.files


def test_a_merged_model_is_a_folder_like_any_other_and_answers_like_the_adapter(
    pulled: Path, tmp_path: Path
) -> None:
    target = tmp_path / "mine"
    asked = ["--adapter", NAME, "--output", str(target), "--merge", "true"]
    done = CliRunner().invoke(pull, asked)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "mine-merged"
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".py")) or "adapter" in name for name in names)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # whoever serves it reads
    adapter = pulled / parcel.ADAPTER
    base = json.loads((adapter / parcel.RECIPE).read_text())["base"]["place"]
    beside = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    bare = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.inference_mode():
        wanted, found, before = (m.eval()(torch.tensor(IDS)).logits for m in (beside, merged, bare))
    assert torch.allclose(found, wanted, rtol=0, atol=TOLERANCE)
    assert (before - wanted).abs().max() > 10 * TOLERANCE
    text = "A text: does it matter?\n"
    ids = [AutoTokenizer.from_pretrained(place)(text)["input_ids"] for place in (folder, base)]
    assert ids[0] == ids[1]


def test_the_card_says_in_grams_what_the_store_says_in_kilograms(
    house: House, promoted: ModelVersion, pulled: Path
) -> None:
    run = house.run_of(promoted)
    card = ModelCard.load(pulled / parcel.ADAPTER / parcel.CARD)
    said = card.data.co2_eq_emissions
    kg = run.data.metrics["emissions_kg"]
    assert said["emissions"] == pytest.approx(1000 * kg, rel=1e-12)
    assert {"source", "training_type", "geographical_location", "hardware_used"} < said.keys()
    assert said["geographical_location"] == "France"
    (loss,) = (one for one in card.data.eval_results if one.metric_type == "loss")
    assert loss.metric_value == run.data.metrics["val_loss"]
    assert float(promoted.tags["emissions_kg"]) == kg
    (sweep,) = house.client.search_runs(["0"], "tags.`green_tune.kind` = 'sweep'")
    whole = sweep.data.metrics["emissions_kg"]
    assert float(promoted.tags["study_emissions_kg"]) == whole > kg
    row = f"the whole sweep s, 3 trials | {facts.energy(sweep.data.metrics['energy_kwh'])} |"
    assert f"{row} {facts.mass(whole)} |" in card.text
    assert (pulled / parcel.ADAPTER / parcel.LABEL).read_bytes().startswith(b"\x89PNG")


def test_a_real_adapter_finds_its_base_model_on_another_machine_and_takes_no_other(
    house: House, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there, other = (tmp_path / name / "stories260K" for name in ("here", "there", "other"))
    shutil.copytree(shared / "models" / "stories260K", here)
    real = {"task": "sentiment", "data": str(shared / "sentiment"), "max_train_examples": "100"}
    run_id = house.trained(model=str(here), **real)
    house.run("promote", rule=run_id, examples="0")
    pulled = tmp_path / "pulled"
    name = "stories260K-sentiment"
    done = CliRunner().invoke(pull, ["--base", "stories260K", "--output", str(pulled)])
    assert done.exit_code == 0, done.output
    assert name in done.stdout
    witness = Witness.of(house.client.get_run(run_id), tmp_path / "trained")
    witness.check_same(pulled)
    split = split_of("sentiment", real["data"], most=8)
    expected, inputs = witness.predictions(split), inputs_of(split, "sentiment")
    assert predicted(pulled, inputs, tmp_path) == expected

    here.parent.rename(there.parent)
    asked = ["--adapter", name, "--text", "a film that one would see again"]
    check_refused(CliRunner().invoke(predict, asked), str(here), "GREEN_TUNE_BASE")
    monkeypatch.setenv("GREEN_TUNE_BASE", str(there))
    assert predicted(name, inputs, tmp_path) == expected
    shutil.copytree(there, other)
    weights = other / "model.safetensors"
    weights.write_bytes(flipped(weights.read_bytes(), -1000))
    monkeypatch.setenv("GREEN_TUNE_BASE", str(other))
    check_refused(CliRunner().invoke(predict, asked), str(other), "another model or revision")
