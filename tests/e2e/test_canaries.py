"""Secrets in every place where a user can put one; then every byte is searched that came out.

One process gives all commands, so that the libraries are imported once; what it connects to is
written down.
"""

import json
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import program
import pytest
import sqlalchemy
from mlflow import MlflowClient
from postgres import Postgres

pytestmark = pytest.mark.e2e

PATIENCE_S = 240.0
STEM = "c4n4ry5ecr3t7"  # in every secret: one search finds each, and what is left of it
STUDY = "searched"
SMALL = {
    "gpu": "cpu", "max_train_examples": "24", "max_eval_examples": "8", "evals": "1",
    "quality_examples": "4",
}  # fmt: skip
SWEEP = {**SMALL, "study": STUDY, "trials": "2", "quality_examples": "0", "reuse": "never"}
WELL = 7  # commands that have all they need, at the beginning

DRIVER = """
import json, os, sys
from importlib import import_module

def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        addresses.append((len(given), f"{event} {arguments!r}"))

addresses, given = [], []
sys.addaudithook(note)
from mlflow.store.db import utils
utils.MAX_RETRY_COUNT = 1  # else MLflow tries a wrong password for 100 s
steps = json.load(sys.stdin)
for entry, options, environment in steps:
    print("##", entry, flush=True)
    given.append(entry)
    before = dict(os.environ)
    os.environ.update(environment)
    sys.argv = [os.path.abspath(f"entrypoints/{entry}.py")]  # as MLflow looks for it
    command = getattr(import_module(f"entrypoints.{entry}"), entry)
    try:
        command.main([word for key, text in options.items() for word in (f"--{key}", text)])
    except SystemExit as end:
        print("## ended with", end.code, flush=True)
    os.environ.clear()
    os.environ.update(before)
with open("addresses.json", "w") as file:
    json.dump(addresses, file)
"""

Step = tuple[str, Mapping[str, str], Mapping[str, str]]  # command, its options, what is set for it


def secret(place: str) -> str:
    """One that says where it was planted, with signs that addresses have to escape."""
    return f"{STEM}/{place}:%{STEM}"


@dataclass(frozen=True, kw_only=True)
class House:
    """A folder with the program, and its store and study on a server with passwords."""

    folder: Path
    database: str  # the tracking store's address, with its password
    environment: Mapping[str, str]

    def give(self, *steps: Step) -> str:
        """What some commands have said, on either stream, in one process."""
        done = subprocess.run(
            [sys.executable, "-c", DRIVER], cwd=self.folder, env=dict(self.environment),
            input=json.dumps(steps), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def rows(self) -> str:
        """All that the store's and the study's databases hold."""
        texts = []
        for address in (self.database, self.environment["GREEN_TUNE_STUDY_STORAGE"]):
            engine = sqlalchemy.create_engine(address.replace("://", "+psycopg2://"))
            with engine.connect() as connection:
                for table in sqlalchemy.inspect(connection).get_table_names():
                    found = connection.exec_driver_sql(f'SELECT * FROM "{table}"').all()
                    texts += [f"{table} {row!r}" for row in found]
            engine.dispose()
        return "\n".join(texts)

    def files(self) -> Iterator[Path]:
        """All files but those in which secrets were planted."""
        for path in self.folder.rglob("*"):
            inside = path.relative_to(self.folder).parts
            if path.is_file() and inside[0] not in ("home", ".git"):
                yield path


@dataclass(frozen=True, kw_only=True)
class Told:
    """What came of all commands."""

    house: House
    said: str
    rows: str

    def after(self, entry: str) -> str:
        """What the commands of one name have said."""
        return "".join(part for part in self.said.split("## ") if part.startswith(f"{entry}\n"))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> House:
    folder = tmp_path_factory.mktemp("house")
    program.copy_to(folder)
    for name in ("home/.cache/huggingface", "home/.aws", "home/.mlflow", "tmp"):
        (folder / name).mkdir(parents=True)
    planted_files(folder)
    planted_repository(folder)
    store, study = (database(postgres, place) for place in ("store", "study"))
    user, _, at = study.removeprefix("postgresql://").partition("@")
    password = user.partition(":")[2]
    study = f"postgresql://{user.partition(':')[0]}@{at}?password={password}"
    return House(folder=folder, database=store, environment=planted(folder, store, study))


def database(postgres: Postgres, place: str) -> str:
    """The address of an empty one, whose owner has a password to be found."""
    name = postgres.new_database().rpartition("/")[2]
    password = secret(place)
    postgres.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
    postgres.execute(f"ALTER DATABASE {name} OWNER TO {name}")
    login = f"{name}:{quote(password, safe='')}"
    return f"postgresql://{login}@127.0.0.1:{postgres.port}/{name}"


def planted(folder: Path, store: str, study: str) -> dict[str, str]:
    """All variables that hold a secret and are read here, by libraries too."""
    kept = {name: os.environ[name] for name in ("PATH", "XDG_CACHE_HOME")}
    names = (
        "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "HF_TOKEN", "PGPASSWORD", "CODECARBON_API_KEY",
        "GITHUB_TOKEN",
    )  # fmt: skip
    return kept | {name: secret(name) for name in names} | {
        "MLFLOW_TRACKING_URI": store,
        "GREEN_TUNE_STUDY_STORAGE": study,
        "MLFLOW_TRACKING_USERNAME": "somebody",
        "MLFLOW_S3_ENDPOINT_URL": f"http://me:{quote(secret('s3'), safe='')}@127.0.0.1:1",
        "HF_ENDPOINT": f"http://me:{quote(secret('hub'), safe='')}@127.0.0.1:1",
        "MLFLOW_RUN_CONTEXT": json.dumps({"deployed_from": f"https://me:{STEM}@127.0.0.1/x"}),
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "XDG_STATE_HOME": str(folder / "state"),
        "GREEN_TUNE_METERS": str(folder / "meters"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
    }  # fmt: skip


def planted_files(folder: Path) -> None:
    home = folder / "home"
    (home / ".cache/huggingface/token").write_text(secret("token-file"))
    (home / ".mlflow/credentials").write_text(f"[mlflow]\nmlflow_tracking_password = {STEM}\n")
    (home / ".aws/credentials").write_text(f"[default]\naws_secret_access_key = {STEM}\n")
    (home / ".netrc").write_text(f"machine 127.0.0.1 login me password {STEM}\n")


def planted_repository(folder: Path) -> None:
    """The program in a repository whose remote has a token in its address."""
    remote = f"https://me:{STEM}-git@git.invalid/green-tune.git"
    who = ("-c", "user.name=x", "-c", "user.email=x@x.invalid")
    (folder / ".gitignore").write_text("*\n!MLproject\n!entrypoints/**\n")
    for words in (
        ("init", "-q"), ("remote", "add", "origin", remote), ("add", "."),
        (*who, "commit", "-q", "-m", "x"),
    ):  # fmt: skip
        subprocess.run(["git", *words], cwd=folder, check=True)


@pytest.fixture(scope="module")
def told(house: House) -> Told:
    """Every command once, those that fail among them."""
    wrong = {"GREEN_TUNE_STUDY_STORAGE": with_password(house.database, secret("wrong"))}
    with chdir(house.folder):  # where the store is made, its artifacts are
        client = MlflowClient(house.database.replace("://", "+psycopg2://"))
        source = f"https://me:{STEM}@git.invalid"  # as `mlflow run` tags it
        launched = client.create_run("0", tags={"mlflow.source.name": source})
    at = house.database.rpartition("@")[2].partition("/")[0]  # where something else listens
    no_server = f"http://me:{quote(secret('server'), safe='')}@{at}"
    typed = f"https://me:{STEM}@data.invalid/x"  # which a launcher would have logged: not planted
    said = house.give(
        ("train", SMALL, {}),
        ("sweep", SWEEP, {}),
        ("compare", {"output": "report"}, {}),
        ("quote", {**SMALL, "output": "quoted", "probe_seconds": "0.5"}, {}),
        ("promote", {"study": STUDY, "examples": "0"}, {}),
        ("pull", {"adapter": "tiny-sentiment"}, {}),
        ("predict", {"adapter": "tiny-sentiment", "text": "good", "gpu": "cpu"}, {}),
        ("doctor", {}, {}),
        ("doctor", {"json": "true"}, {"MLFLOW_TRACKING_URI": no_server, **wrong}),
        ("sweep", {**SWEEP, "study": "wrong"}, wrong),
        ("compare", {}, {"MLFLOW_TRACKING_URI": with_password(house.database, secret("wrong"))}),
        ("compare", {}, {"MLFLOW_TRACKING_URI": f"http://me:{STEM}@127.0.0.1:1"}),
        ("compare", {}, {"MLFLOW_TRACKING_URI": no_server}),
        ("pull", {"adapter": "tiny"}, {"MLFLOW_REGISTRY_URI": no_server}),
        ("compare", {}, {"MLFLOW_TRACKING_URI": f"http://me:1/{STEM}@127.0.0.1"}),
        ("sweep", SWEEP, {"GREEN_TUNE_STUDY_STORAGE": f"postgresql//me:{STEM}@127.0.0.1/x"}),
        ("train", {**SMALL, "model": "me/model"}, {}),
        ("train", {"data": typed}, {"MLFLOW_RUN_ID": launched.info.run_id}),
    )
    return Told(house=house, said=said, rows=house.rows())


def with_password(address: str, password: str) -> str:
    scheme, _, rest = address.partition("://")
    user, at = rest.partition(":")[0], rest.rpartition("@")[2]
    return f"{scheme}://{user}:{quote(password, safe='')}@{at}"


def holds(text: bytes) -> bool:
    """Whether a secret is in it, as it is or as Base64 has it at any of three offsets."""
    padded = (b"x" * offset + STEM.encode() for offset in range(3))
    inner = (b64encode(each[: len(each) // 3 * 3])[4 * (each[0:1] == b"x") :] for each in padded)
    return any(form in text for form in (STEM.encode(), *inner))


def test_all_commands_were_given_and_ended_as_they_should(told: Told) -> None:
    codes = [line.split()[-1] for line in told.said.splitlines() if line.startswith("## ended")]
    assert codes == ["0"] * (WELL + 1) + ["1"] + ["2"] * 9, told.said
    assert "Traceback" not in told.said


def test_no_secret_is_on_the_screen(told: Told) -> None:
    assert STUDY in told.said
    assert [line for line in told.said.splitlines() if holds(line.encode())] == []


def test_no_secret_is_in_the_databases(told: Told) -> None:
    assert STUDY in told.rows
    assert [row for row in told.rows.splitlines() if holds(row.encode())] == []


def test_no_secret_is_in_a_file(told: Told) -> None:
    there = {path.name for path in told.house.files()}
    assert there >= {"energy.csv", "emissions.csv", "report.html", "quote.json", "MLmodel",
                     "boamps.json", "adapter_config.json", "recipe.json", "README.md"}  # fmt: skip
    assert [str(path) for path in told.house.files() if holds(path.read_bytes())] == []


def test_the_search_finds_what_is_there(told: Told) -> None:
    planted = (told.house.folder / "home/.netrc").read_bytes()
    assert holds(planted)
    assert all(holds(b64encode(b"." * offset + planted)) for offset in range(3))
    assert not holds(b64encode(b"x" * 99))


def test_what_is_refused_says_why_without_the_secret(told: Told) -> None:
    assert "password authentication failed" in told.after("sweep")
    assert "nobody answers at 127.0.0.1:1" in told.after("compare")
    assert "does not answer" in told.after("compare")
    assert "write an @ of a password as %40" in told.after("compare")
    assert "does not answer" in told.after("pull")
    assert "***@127.0.0.1/x is no database" in told.after("sweep")
    refused = told.after("train")
    assert "data= holds a password or a token" in refused
    assert "mlflow gc --run-ids" in refused
    assert "the hub at http://***@127.0.0.1:1 cannot be reached" in refused


def test_nobody_is_asked_but_the_stores(told: Told) -> None:
    """Not the hub for `tiny`, nor where this machine stands and in which cloud, as others do.

    The database's driver is no Python, so it is not seen here.
    """
    asked = json.loads((told.house.folder / "addresses.json").read_text())
    port = f", {urlsplit(told.house.database).port}"
    well = [each for number, each in asked if number <= WELL]
    assert [each for each in well if port not in each] == []
    assert any("('127.0.0.1', 1)" in each for _, each in asked)  # a hub that was to be asked
    assert [each for _, each in asked if "'127.0.0.1'" not in each] == []
