"""The hub's refusals as one line that says what to do, from a real server on the loopback."""

import json
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import datasets
import huggingface_hub
import pytest
from huggingface_hub import constants

from green_tune import data, hub
from green_tune.errors import DataError, ModelError
from green_tune.tasks import TASKS, HubData

COMMIT = "c0ffee" * 6 + "1234"
Answer = tuple[int, str, str]  # status, X-Error-Code, X-Error-Message


class FakeHub(BaseHTTPRequestHandler):
    """A hub that gives one answer about every model and data set, and one about their files."""

    about: Answer = (200, "", "")
    access: Answer = (200, "", "")
    delay_s = 0.0

    def do_GET(self) -> None:
        asks_for_access = self.path.endswith("/auth-check") or "/resolve/" in self.path
        time.sleep(self.delay_s if asks_for_access else 0)
        status, code, message = self.access if asks_for_access else self.about
        body = json.dumps({"id": "owner/name", "sha": COMMIT, "tags": [], "siblings": []}).encode()
        self.send_response(status)
        for name, text in {"Code": code, "Message": message}.items():
            self.send_header(f"X-Error-{name}", text)
        for name in ("ETag", "X-Repo-Commit"):
            self.send_header(name, COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body * (self.command == "GET"))

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty local cache, no token, and a hub that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield tmp_path / "hub"
    huggingface_hub.close_session()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    """A hub that is there, and says what is set on it."""
    handler = type("Handler", (FakeHub,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield handler
        server.shutdown()


def refusals() -> Iterator[tuple[str, str]]:
    """How a model and a data set are refused, in one line, and the page of each."""
    with pytest.raises(ModelError, match=r"\Amodel owner/name [^\n]*\Z") as model:
        hub.check_model("owner/name", "v9")
    yield str(model.value), f"{constants.ENDPOINT}/owner/name"
    with pytest.raises(DataError, match=r"\Adata set rajpurkar/squad [^\n]*\Z") as data_set:
        data.load(TASKS["qa"], "hub")
    yield str(data_set.value), f"{constants.ENDPOINT}/datasets/rajpurkar/squad"


def test_a_model_that_is_ours_gives_its_commit(answers: type[FakeHub]) -> None:
    assert hub.check_model("owner/name", "main") == COMMIT


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_where_to_accept_and_how_to_sign_in(
    answers: type[FakeHub], status: int
) -> None:
    answers.about = (status, "GatedRepo", "")
    for line, page in refusals():
        assert f"is gated: accept its licence at {page}," in line
        assert f"make a token at {constants.ENDPOINT}/settings/tokens" in line
        assert "set HF_TOKEN (or run `hf auth login`)" in line


def test_a_gated_model_that_anybody_may_look_at_is_refused_too(answers: type[FakeHub]) -> None:
    answers.access = (403, "GatedRepo", "")
    assert "is gated: accept its licence at" in next(refusals())[0]


def test_a_repository_that_is_not_there_may_be_private(answers: type[FakeHub]) -> None:
    answers.about = (404, "RepoNotFound", "")
    for line, page in refusals():
        assert "does not exist, or is private and HF_TOKEN is not set" in line
        assert page in line


def test_a_revision_that_is_not_there_is_named_with_where_to_look(answers: type[FakeHub]) -> None:
    answers.about = (404, "RevisionNotFound", "")
    line, page = next(refusals())
    assert "has no revision 'v9'" in line
    assert page in line


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_refused_is_not_blamed_on_the_network(
    answers: type[FakeHub], status: int
) -> None:
    answers.about = (status, "", "Invalid credentials in Authorization header")
    for line, _ in refusals():
        assert "HF_TOKEN" in line
        assert "network" not in line


def test_a_hub_that_fails_leaves_a_local_folder(answers: type[FakeHub]) -> None:
    answers.about = (500, "", "")
    for line, _ in refusals():
        assert "500" in line
        assert "give a local folder" in line


def test_a_hub_that_is_not_there_is_named_with_what_to_do() -> None:
    for line, _ in refusals():
        assert f"the hub at {constants.ENDPOINT} cannot be reached (" in line
        assert "check the network or HF_ENDPOINT, or give a local folder" in line


def test_what_keeps_a_process_offline_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in next(refusals())[0]


def test_a_hub_that_does_not_answer_is_not_waited_for(
    answers: type[FakeHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "TIMEOUT_S", 0.2)
    answers.delay_s = 1.0
    assert "cannot be reached" in next(refusals())[0]


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_model_in_the_cache_needs_no_hub(cache: Path, revision: str) -> None:
    home = cache / "models--owner--name"
    for file, text in {f"snapshots/{COMMIT}/config.json": "{}", "refs/main": COMMIT}.items():
        (home / file).parent.mkdir(parents=True)
        (home / file).write_text(text)
    assert hub.check_model("owner/name", revision) == COMMIT
    assert "cannot be reached" in next(refusals())[0]  # revision v9 is not there


@pytest.mark.parametrize(("limit", "texts"), [(2, "ab"), (0, "abc"), (9, "abc")])
def test_rows_in_the_cache_come_first_to_last_under_the_tasks_names(
    cache: Path, monkeypatch: pytest.MonkeyPatch, limit: int, texts: str
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache / "converted"))
    place = cache / "set"
    source = HubData(
        id=str(place), config=None, splits={"train": "train"}, columns={"sentence": "text"}
    )
    for folder in (place, cache / f"datasets--{source.id.replace('/', '--')}"):
        folder.mkdir(parents=True)
    lines = [json.dumps({"sentence": text, "label": 1}) for text in "abc"]
    (place / "train.jsonl").write_text("\n".join(lines))
    assert list(hub.rows(source, "train", limit)) == [{"text": t, "label": 1} for t in texts]
