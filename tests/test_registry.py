"""Versions and aliases in real registries: what is found, what moves, and what two do at once."""

import json
import multiprocessing as mp
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from green_tune.choice import RULES
from green_tune.errors import AdapterError, ConfigError, StoreError
from green_tune.registry import FORCED, Registry
from green_tune.results import KIND
from green_tune.store import registry_uri
from green_tune.versions import ADAPTER_KIND, ADDRESS, FRONT_TAG, RULES_TAG, Version, name_for

ROUNDS, FEW = 20, 5
TABLES = ("registered_models", "registered_model_tags", "registered_model_aliases",
          "model_versions", "model_version_tags", "logged_models")  # fmt: skip


class Shelf:
    """A registry, and what it takes to put made-up versions into it."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri = uri
        self.client = MlflowClient(uri)
        self.registry = Registry(uri)
        self.experiment = self.client.create_experiment("e", str(folder / "artifacts"))
        self.folder = folder / "parcel"
        (self.folder / "adapter").mkdir(parents=True)
        (self.folder / "adapter" / "README.md").write_text("# A card\n")

    def run(self) -> str:
        return str(self.client.create_run(self.experiment).info.run_id)

    def add(self, loss: float, kg: float, *rules: str, name: str = "m", **tags: str) -> Version:
        run_id = self.run()
        return self.registry.register(
            name, self.folder, run_id, tags=said(run_id, loss, kg, *rules) | tags, description="d"
        )

    def move(self, alias: str, version: Version, *, force: bool = False) -> int:
        return self.registry.move(alias, version, within_percent=5.0, force=force).number

    def holder(self, alias: str, name: str = "m") -> int:
        return int(self.client.get_model_version_by_alias(name, alias).version)

    def rows(self) -> dict[str, list[Any]]:
        path = self.uri.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as store:
            return {
                name: sorted(store.execute(f"SELECT * FROM {name}"), key=str) for name in TABLES
            }


def said(run_id: str, loss: float, kg: float, *rules: str) -> dict[str, str]:
    """The tags of a version."""
    return {
        KIND: ADAPTER_KIND,
        ADDRESS: f"runs:/{run_id}/adapter",
        RULES_TAG: ",".join(rules),
        FRONT_TAG: json.dumps([[loss, kg]]),
        "val_loss": repr(loss),
        "emissions_kg": repr(kg),
        "task": "qa",
        "data_digest": "d",
        "base_model": "tiny",
    }


@pytest.fixture
def shelf(store_uri: str, tmp_path: Path) -> Shelf:
    return Shelf(store_uri, tmp_path)


def refusal(ask: Callable[[], object]) -> str:
    with pytest.raises(AdapterError) as caught:
        ask()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_version_is_found_as_it_was_registered(shelf: Shelf) -> None:
    made = shelf.add(1.5, 0.25, "best", "greenest")
    assert (made.name, made.number, str(made)) == ("m", 1, "m/1")
    assert made.pair == (1.5, 0.25)
    assert made.rules == ("best", "greenest")
    assert made.front == [(1.5, 0.25)]
    assert made.is_ours
    assert made.terms == ("qa", "d", "tiny", "")
    assert shelf.registry.versions() == [made]
    assert shelf.registry.of_adapter("m", made.tags[ADDRESS]) == made
    assert shelf.registry.of_adapter("m", "runs:/other/adapter") is None
    assert shelf.registry.of_adapter("n", made.tags[ADDRESS]) is None
    assert shelf.client.get_model_version("m", "1").description == "d"


def test_the_files_of_a_version_are_listed_and_fetched(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add(1.5, 0.25)
    place = shelf.registry.place(made)
    assert shelf.registry.files(place) == {"adapter/README.md": 9}
    shelf.registry.fetch(place, "adapter/README.md", tmp_path / "to")
    assert (tmp_path / "to" / "adapter" / "README.md").read_text() == "# A card\n"


def test_a_version_is_among_the_outputs_of_its_run(shelf: Shelf) -> None:
    made = shelf.add(1.5, 0.25)
    outputs = shelf.client.get_run(made.run_id).outputs
    assert outputs
    (output,) = outputs.model_outputs
    model = shelf.client.get_logged_model(output.model_id)
    assert (str(model.status), model.tags["val_loss"]) == ("READY", "1.5")


def test_a_version_is_found_by_number_alias_or_as_the_latest(shelf: Shelf) -> None:
    first, second = shelf.add(2.0, 1.0), shelf.add(1.0, 2.0)
    shelf.move("prod", first)
    assert shelf.registry.version("m", "1").number == first.number
    assert shelf.registry.version("m", "prod").number == first.number
    assert shelf.registry.version("m", "latest").number == second.number
    assert shelf.registry.version("m", "prod").aliases == ("prod",)


def test_an_alias_that_is_a_number_hides_no_version(shelf: Shelf) -> None:
    shelf.add(2.0, 1.0), shelf.add(1.0, 2.0)
    shelf.client.set_registered_model_alias("m", "2", "1")
    assert shelf.registry.version("m", "2").number == 2


def test_what_is_not_there_is_answered_with_what_is(shelf: Shelf) -> None:
    find = shelf.registry.version
    assert refusal(lambda: find("m", "1")) == (
        "no registered model is called m; the registry is empty: mlflow run . -e promote "
        "-P study=..."
    )
    shelf.add(2.0, 1.0, name="tiny-qa")
    assert refusal(lambda: find("tiny-qs", "1")) == (
        "no registered model is called tiny-qs; did you mean tiny-qa?"
    )
    assert refusal(lambda: find("x", "1")) == "no registered model is called x; there is tiny-qa"
    assert refusal(lambda: find("tiny-qa", "best")) == (
        "tiny-qa has no version or alias best; it has no alias and the version 1"
    )
    version = shelf.add(2.0, 1.0, name="tiny-qa")
    for alias in ("b", "a"):
        shelf.move(alias, version)
    assert refusal(lambda: find("tiny-qa", "3")) == (
        "tiny-qa has no version or alias 3; it has the aliases a, b and the versions 1, 2"
    )


def test_of_many_names_only_some_are_listed(shelf: Shelf) -> None:
    for number in range(12):
        shelf.client.create_registered_model(f"many-{number:02}")
    assert refusal(lambda: shelf.registry.versions("x")) == (
        "no registered model is called x; there is many-00, many-01, many-02, many-03, many-04, "
        "many-05, many-06, many-07, many-08, many-09 and others"
    )


def test_a_model_without_versions_says_so(shelf: Shelf) -> None:
    shelf.client.create_registered_model("m")
    assert refusal(lambda: shelf.registry.version("m", "latest")) == (
        "m has no version or alias latest; it has no alias and no version"
    )
    assert shelf.add(2.0, 1.0).number == 1


def test_a_prompt_is_no_model(shelf: Shelf) -> None:
    shelf.client.register_prompt("p", "Say {{this}}")
    assert shelf.registry.names() == []
    assert shelf.registry.versions() == []


def test_an_alias_moves_only_to_a_version_that_its_rule_prefers(shelf: Shelf) -> None:
    middle = shelf.add(2.0, 2.0, *RULES)
    assert [shelf.move(rule, middle) for rule in RULES] == [1, 1, 1]
    worse = shelf.add(3.0, 3.0, *RULES)
    assert [shelf.move(rule, worse) for rule in RULES] == [1, 1, 1]
    better = shelf.add(1.0, 5.0, *RULES)
    assert [shelf.move(rule, better) for rule in RULES] == [3, 3, 1]
    cheaper = shelf.add(1.04, 1.0, *RULES)
    assert [shelf.move(rule, cheaper) for rule in RULES] == [3, 4, 4]
    assert [shelf.holder(rule) for rule in RULES] == [3, 4, 4]


def test_what_was_not_promoted_for_a_rule_does_not_take_its_alias(shelf: Shelf) -> None:
    shelf.add(1.0, 1.0, "greenest")
    asked = shelf.add(2.0, 2.0, "best")
    assert shelf.move("best", asked) == 2


def test_moving_twice_changes_nothing(shelf: Shelf) -> None:
    version = shelf.add(2.0, 2.0, "best")
    shelf.move("best", version)
    before = shelf.rows()
    shelf.move("best", version)
    assert shelf.rows() == before


def test_a_forced_alias_is_not_taken_back_by_what_was_there_and_left_for_what_is_new(
    shelf: Shelf,
) -> None:
    best, worse = shelf.add(1.0, 1.0, "best"), shelf.add(3.0, 3.0, "best")
    assert shelf.move("best", best) == 1
    assert shelf.move("best", worse) == 1
    assert shelf.move("best", worse, force=True) == 2
    assert shelf.move("best", best) == 2
    assert shelf.move("best", shelf.add(4.0, 4.0, "best")) == 2
    assert shelf.move("best", shelf.add(2.0, 2.0, "best")) == 4
    assert shelf.move("best", best, force=True) == 1


def test_an_alias_whose_forced_version_was_deleted_can_be_had_again(shelf: Shelf) -> None:
    best, worse = shelf.add(1.0, 1.0, "best"), shelf.add(3.0, 3.0, "best")
    assert shelf.move("best", worse, force=True) == 2
    shelf.client.delete_model_version("m", "2")
    assert shelf.move("best", best) == 1


def test_a_note_of_force_that_cannot_be_read_is_none(shelf: Shelf) -> None:
    best = shelf.add(1.0, 1.0, "best")
    shelf.client.set_registered_model_tag("m", f"{FORCED}best", "by hand")
    assert shelf.move("best", best) == 1


@pytest.mark.parametrize("term", ["task", "data_digest", "base_model", "base_revision"])
def test_an_alias_stays_where_losses_cannot_be_compared(shelf: Shelf, term: str) -> None:
    assert shelf.move("best", shelf.add(3.0, 3.0, "best")) == 1
    other = shelf.add(1.0, 1.0, "best", **{term: "another"})
    assert shelf.move("best", other) == 1
    assert shelf.move("best", other, force=True) == 2


def test_an_alias_of_a_users_own_moves_only_when_forced(shelf: Shelf) -> None:
    worse, better = shelf.add(3.0, 3.0), shelf.add(1.0, 1.0)
    assert shelf.move("prod", worse) == 1
    assert shelf.move("prod", better) == 1
    assert shelf.move("prod", better, force=True) == 2
    assert shelf.move("prod", worse) == 2


def test_a_version_may_be_given_a_rules_alias_that_has_not_chosen_it(shelf: Shelf) -> None:
    plain = shelf.add(2.0, 2.0)
    assert shelf.move("best", plain) == 1
    assert shelf.move("best", shelf.add(3.0, 3.0)) == 1
    assert shelf.move("best", shelf.add(1.0, 1.0, "greenest")) == 3


@pytest.mark.parametrize("alias", ["latest", "v1", "a b", "a/b", "x" * 300, ""])
def test_an_alias_that_mlflow_does_not_allow_is_refused(shelf: Shelf, alias: str) -> None:
    version = shelf.add(2.0, 2.0)
    with pytest.raises(ConfigError, match="is not possible"):
        shelf.move(alias, version)


def test_versions_of_others_are_left_alone(shelf: Shelf) -> None:
    shelf.client.create_registered_model("m")
    shelf.client.create_model_version("m", "s3://somewhere/else")
    shelf.client.set_registered_model_alias("m", "best", "1")
    mine = shelf.add(1.0, 1.0, *RULES)
    assert mine.number == 2
    assert shelf.move("best", mine) == 1  # theirs
    assert shelf.move("greenest", mine) == 2
    assert [version.is_ours for version in shelf.registry.versions("m")] == [False, True]
    assert shelf.move("best", mine, force=True) == 2


@pytest.mark.parametrize(
    "tags",
    [
        {"val_loss": "low"},
        {"val_loss": "nan"},
        {"emissions_kg": ""},
        {KIND: "other"},
        {FRONT_TAG: "[[1], 2]"},
        {FRONT_TAG: '{"a": 1}'},
        {FRONT_TAG: "[[NaN, 1]]"},
        {FRONT_TAG: f"[[1{'0' * 400}, 1]]"},
        {"val_loss": "inf"},
    ],
)
def test_tags_that_somebody_has_changed_break_nothing(shelf: Shelf, tags: dict[str, str]) -> None:
    good = shelf.add(2.0, 2.0, "best", "balanced")
    changed = shelf.add(3.0, 3.0, "best", "balanced", **tags)
    assert shelf.move("best", good) == 1
    assert shelf.move("balanced", changed) == 1
    assert shelf.move("balanced", good) == 1


def test_an_adapter_that_is_registered_again_has_one_version(shelf: Shelf) -> None:
    run_id = shelf.run()
    tags = said(run_id, 1.0, 1.0, "best")
    once, twice = (
        shelf.registry.register("m", shelf.folder, run_id, tags=tags, description="")
        for _ in range(2)
    )
    assert once.number == twice.number == 1
    assert len(shelf.registry.versions()) == 1


def test_what_cannot_be_registered_leaves_no_model_behind(shelf: Shelf) -> None:
    with pytest.raises(StoreError, match="Invalid model name"):
        shelf.add(1.0, 1.0, name="a/b")
    assert shelf.client.search_logged_models([shelf.experiment]) == []
    assert shelf.registry.names() == []


@pytest.mark.parametrize(
    ("base", "task", "name"),
    [
        ("gemma-2b", "qa", "gemma-2b-qa"),
        ("owner/model", "qa", "owner-model-qa"),
        ("/home/me/my model", "qa", "home-me-my-model-qa"),
        ("../..", "qa", "qa"),
        ("", "", ""),
    ],
)
def test_the_name_of_a_model_is_one_that_can_be_typed(base: str, task: str, name: str) -> None:
    assert name_for(base, task) == name


# ------------------------------------------------------------------------------- two at once


def _promoter(uri: str, folder: str, shared: str, mine: int, meet: Any, answers: Any) -> None:
    """One of two: of each model b... it has the better or the worse version, of s... the same."""
    os.chdir(folder)
    registry, client = Registry(uri), MlflowClient(uri)
    place = client.get_run(shared).info.experiment_id  # whose files are in a folder of the test

    def promote(name: str, run_id: str, loss: float) -> tuple[int, int]:
        tags = said(run_id, loss, 1.0, "best")
        meet.wait(240)
        made = registry.register(name, Path(folder), run_id, tags=tags, description="")
        return made.number, registry.move("best", made, within_percent=5.0).number

    for number in range(ROUNDS):
        own = client.create_run(place).info.run_id
        promote(f"b{number}", own, 1.0 if number % 2 == mine else 2.0)
        if number < FEW:
            answers.put((number, *promote(f"s{number}", shared, 1.0)))


def _killed(uri: str, folder: str, name: str, run_id: str, last: str) -> None:
    """Registers, and is killed right after a call to MLflow."""
    os.chdir(folder)
    registry = Registry(uri)
    call = getattr(registry._client, last)

    def and_die(*given: Any, **named: Any) -> None:
        call(*given, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(registry._client, last, and_die)
    tags = said(run_id, 1.0, 1.0, "best")
    registry.register(name, Path(folder), run_id, tags=tags, description="")


def _started(target: Callable[..., None], several: Sequence[tuple[Any, ...]]) -> list[Any]:
    processes = [mp.get_context("spawn").Process(target=target, args=one) for one in several]
    for process in processes:
        process.start()
    return processes


Raced = tuple[Registry, list[tuple[int, int, int]]]  # round, version, and who has the alias


@pytest.fixture(scope="module")
def raced(_migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Raced:
    """A registry in which two processes have promoted at once, and what they were told."""
    folder = tmp_path_factory.mktemp("raced")
    shutil.copy(_migrated, folder / "mlflow.db")
    shelf = Shelf(f"sqlite:///{folder / 'mlflow.db'}", folder)
    context = mp.get_context("spawn")
    meet, answers = context.Barrier(2), context.Queue()
    given = (shelf.uri, str(shelf.folder), shelf.run())
    processes = _started(_promoter, [(*given, mine, meet, answers) for mine in (0, 1)])
    told = [answers.get(timeout=240) for _ in range(2 * FEW)]
    for process in processes:
        process.join(120)
    return shelf.registry, told


def test_of_two_that_promote_at_once_the_better_version_has_the_alias(raced: Raced) -> None:
    registry, _ = raced
    for number in range(ROUNDS):
        versions = registry.versions(f"b{number}")
        assert [version.pair[0] for version in versions if version.aliases] == [1.0]
        assert sorted(version.pair[0] for version in versions) == [1.0, 2.0]


def test_two_that_promote_the_same_adapter_at_once_make_one_version(raced: Raced) -> None:
    registry, told = raced
    for number in range(FEW):
        (version,) = registry.versions(f"s{number}")
        assert version.aliases == ("best",)
        assert {one[1:] for one in told if one[0] == number} == {(version.number,) * 2}


def test_a_promotion_that_is_killed_stands_in_the_way_of_no_later_one(shelf: Shelf) -> None:
    calls = ("log_model_artifacts", "create_registered_model",
             "create_model_version")  # fmt: skip
    run_id = shelf.run()
    several = [(shelf.uri, str(shelf.folder), f"m-{call}", run_id, call) for call in calls]
    for process in _started(_killed, several):
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
    tags = said(run_id, 1.0, 1.0, "best")
    for call in calls:
        name = f"m-{call}"
        made = shelf.registry.register(name, shelf.folder, run_id, tags=tags, description="")
        assert shelf.move("best", made) == made.number
        assert len(shelf.registry.versions(name)) == 1
        assert shelf.registry.files(shelf.registry.place(made)) == {"adapter/README.md": 9}


def test_whoever_moves_an_alias_looks_again(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    better, worse = shelf.add(1.0, 1.0, "best"), shelf.add(2.0, 2.0, "best")
    late = [[version for version in shelf.registry.versions("m") if version.number == 2]]
    see = Registry.versions

    def versions(self: Registry, name: str = "") -> list[Version]:
        return late.pop() if late else see(self, name)

    monkeypatch.setattr(Registry, "versions", versions)
    assert shelf.move("best", worse) == better.number
    assert shelf.holder("best") == better.number


def test_of_two_that_make_an_alias_at_once_the_one_that_is_refused_tries_again(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = shelf.add(1.0, 1.0, "best")
    give, refusals = (
        MlflowClient.set_registered_model_alias,
        [MlflowException("Integrity", BAD_REQUEST)],
    )

    def refused(self: MlflowClient, *given: Any) -> None:
        if refusals:
            raise refusals.pop()
        give(self, *given)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", refused)
    assert shelf.move("best", version) == 1
    refusals += [MlflowException("gone", BAD_REQUEST) for _ in range(2)]
    with pytest.raises(StoreError, match="gone"):
        shelf.move("prod", version)


def test_an_alias_that_others_keep_moving_is_given_up(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    better, worse = shelf.add(1.0, 1.0, "best"), shelf.add(2.0, 2.0, "best")
    moved = Registry._set

    def and_back(self: Registry, alias: str, version: Version) -> None:
        moved(self, alias, version)
        moved(self, alias, worse)

    monkeypatch.setattr(Registry, "_set", and_back)
    said = refusal(lambda: shelf.move("best", better))
    assert said == "others keep moving the alias best of m; try again"


# ------------------------------------------------------------------------------- other stores


class Refusing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing on the screen."""


@pytest.fixture
def refusing() -> Iterator[str]:
    """A web server that knows nothing of MLflow."""
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def no_registry(uri: str) -> str:
    with pytest.raises(StoreError) as caught:
        Registry(uri).names()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_store_without_a_registry_says_so(
    store_uri: str, refusing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for uri in (refusing, "ftp://somewhere/else"):
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", uri)
        assert no_registry(store_uri).startswith("this store has no model registry; use an SQLite")


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("http://127.0.0.1:1", "nobody answers at 127.0.0.1:1"),
        ("postgresql://127.0.0.1:1/x", "nobody answers at 127.0.0.1:1"),
        ("folder", "folder is a folder, which MLflow 3 no longer accepts"),
        ("file:///folder", "file:///folder is a folder, which MLflow 3 no longer accepts"),
        ("sqlite:////proc/none/x.db", "the folder /proc/none of the store does not exist"),
        ("http://", "http:// names no host; correct MLFLOW_REGISTRY_URI"),
    ],
)
def test_a_registry_that_is_away_is_noticed_before_mlflow_tries_for_minutes(
    store_uri: str, uri: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", uri)
    said = no_registry(store_uri)
    assert said.startswith(line)
    assert "MLFLOW_REGISTRY_URI" in said


def test_a_registry_of_its_own_is_used_beside_the_store(
    store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "registry.db"
    other.write_bytes((tmp_path / "mlflow.db").read_bytes())
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{other}")
    shelf = Shelf(store_uri, tmp_path)
    made = shelf.add(1.0, 1.0, "best")
    assert shelf.move("best", made) == 1
    place = shelf.registry.place(made)
    assert shelf.registry.files(place) == {"adapter/README.md": 9}
    monkeypatch.delenv("MLFLOW_REGISTRY_URI")
    assert Registry(store_uri).names() == []


def test_postgresql_is_spoken_to_by_the_driver_that_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert registry_uri("sqlite:///x") == "sqlite:///x"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "postgres://h/d")
    assert registry_uri("sqlite:///x") == "postgresql+psycopg2://h/d"
