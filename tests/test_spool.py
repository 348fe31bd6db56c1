"""What a store has not taken waits on this machine's disk, in order, and reaches it once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

from green_tune import spool
from green_tune.delivery import line
from green_tune.errors import StoreAway, StoreError
from green_tune.spool import About, Act, Spool

PATH = {"PYTHONPATH": str(Path(__file__).parents[1])}
HERE = About(run_id="run", name="a run", address="http://store", sessions=1)


class Store:
    """Takes acts, of kinds that it does not refuse, as long as it is not away for them."""

    def __init__(self) -> None:
        self.away: set[str] = set()
        self.refused: set[str] = set()
        self.taken: list[Any] = []

    def perform(self, act: Act) -> None:
        if act.kind in self.away:
            raise StoreAway("nobody there")
        if act.kind in self.refused:
            raise StoreError("not so")
        files = sorted(path.name for path in act.folder.iterdir()) if act.folder else []
        self.taken.append((act.kind, act.what, files) if files else (act.kind, act.what))


def tags(what: str) -> Act:
    return Act(kind="tags", what={what: "1"})


def files(folder: Path, name: str) -> Act:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "weights").write_text(name)
    return Act(kind="files", what="adapter", folder=folder / name)


END = Act(kind="end", what=["FINISHED", 12])


def left() -> list[Spool]:
    """Those of processes that are gone; their locks are open for whoever delivers."""
    found = [Spool.left(folder) for _, folder in spool.waiting()]
    return [each for each in found if each]


def test_what_a_process_has_left_is_delivered_in_its_order(tmp_path: Path) -> None:
    mine, store = Spool(HERE), Store()
    for act in (tags("a"), files(tmp_path, "x"), tags("b"), END):
        mine.put(act)
    mine.close()
    (tmp_path / "x" / "weights").unlink()  # the spool has a copy
    (theirs,) = left()
    theirs.deliver(store.perform)
    assert store.taken == [
        ("tags", {"a": "1"}),
        ("files", "adapter", ["weights"]),
        ("tags", {"b": "1"}),
        ("end", ["FINISHED", 12]),
    ]
    assert not theirs.folder.exists()


def test_what_a_living_process_keeps_is_its_own() -> None:
    mine = Spool(HERE)
    mine.put(tags("a"))
    assert left() == [] == list(spool.left_for(HERE.address))
    mine.close()
    assert [each.about for each in left()] == [HERE]


def test_a_killed_process_leaves_what_it_had_put() -> None:
    code = """
import os, signal
from green_tune.spool import About, Act, Spool
mine = Spool(About(run_id="run", name="a run", address="http://store", sessions=1))
mine.put(Act(kind="metrics", what=[["loss", 0.5, 1, 2]]))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | PATH, check=False)
    assert done.returncode == -signal.SIGKILL
    store = Store()
    for theirs in spool.left_for(HERE.address):
        theirs.deliver(store.perform)
    assert store.taken == [("metrics", [["loss", 0.5, 1, 2]])]


def test_an_act_that_a_kill_has_cut_in_half_is_left_out() -> None:
    mine, store = Spool(HERE), Store()
    mine.put(tags("a"))
    with (mine.folder / spool.ACTS).open("a") as file:
        file.write('["tags", {"b"')
    mine.close()
    (theirs,) = left()
    theirs.deliver(store.perform)
    assert store.taken == [("tags", {"a": "1"})]


def test_only_what_is_for_the_same_store_is_delivered_there() -> None:
    mine = Spool(HERE)
    mine.put(tags("a"))
    mine.close()
    assert list(spool.left_for("http://other")) == []
    assert [about for about, _ in spool.waiting()] == [HERE]


def test_while_artifacts_wait_the_rest_is_written_but_for_the_end(tmp_path: Path) -> None:
    mine, store = Spool(HERE), Store()
    for act in (tags("a"), files(tmp_path, "x"), tags("b"), END):
        mine.put(act)
    store.away = {"files"}
    with pytest.raises(StoreAway, match="nobody there"):
        mine.deliver(store.perform)
    assert store.taken == [("tags", {"a": "1"}), ("tags", {"b": "1"})]
    assert len(mine) == 2
    mine.put(tags("c"))
    store.away = set()
    mine.deliver(store.perform)
    assert [kind for kind, *_ in store.taken[2:]] == ["files", "end", "tags"]
    assert len(mine) == 0


def test_what_is_refused_keeps_nothing_else_back_and_is_not_thrown_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mine, store = Spool(HERE), Store()
    mine.put(Act(kind="params", what={"a": "1"}))
    mine.put(END)
    store.refused = {"params"}
    mine.deliver(store.perform)
    assert store.taken == [("end", ["FINISHED", 12])]
    kept = mine.folder / spool.REFUSED
    assert json.loads(kept.read_text()) == ["params", {"a": "1"}, ""]
    assert str(kept) in caplog.text
    assert spool.waiting() == []


def test_only_its_user_can_read_what_waits() -> None:
    mine = Spool(HERE)
    mine.put(tags("a"))
    assert mine.folder.stat().st_mode & 0o077 == 0


KINDS = st.sampled_from(["tags", "metrics", "files"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(KINDS, st.sets(KINDS), st.just("die")), max_size=20))
def test_nothing_is_lost_however_often_the_store_is_away(
    tmp_path_factory: pytest.TempPathFactory, events: list[str | set[str]]
) -> None:
    """Acts are put; a set is what the store is away for from then on, and ends in a delivery."""
    folder, store, written = tmp_path_factory.mktemp("acts"), Store(), {"files": 0, "others": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        mine = Spool(HERE)
        for number, event in enumerate(events):
            if event == "die":
                mine.close()
                mine = next(iter(left()), Spool(HERE))
            elif isinstance(event, set):
                store.away = event
                deliver(mine, store)
            elif event == "files":
                mine.put(Act(kind="files", what=number, folder=files(folder, str(number)).folder))
                written["files"] += 1
            else:
                mine.put(Act(kind="tags" if event == "tags" else "metrics", what=number))
                written["others"] += 1
        store.away = set()
        deliver(mine, store)
        assert spool.waiting() == []
    numbers = {
        name: [what for kind, what, *_ in store.taken if (kind == "files") is (name == "files")]
        for name in written
    }
    for name, count in written.items():
        assert len(set(numbers[name])) == count
    assert numbers["files"] == sorted(numbers["files"])


def deliver(mine: Spool, store: Store) -> None:
    if len(mine):
        try:
            mine.deliver(store.perform)
        except StoreAway:
            assert store.away


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        ("ResponseError('too many 503 error responses')", "too many 503 error responses"),
        (
            "NewConnectionError(\"HTTPConnection(host='h', port=5000): Failed to establish a new "
            'connection: [Errno 111] Connection refused")',
            "[Errno 111] Connection refused",
        ),
    ],
)
def test_a_server_that_does_not_answer_is_said_in_a_few_words(cause: str, reason: str) -> None:
    text = (
        "API request to http://me:word@h:5000/api/2.0/mlflow/runs/get failed with exception "
        "HTTPConnectionPool(host='h', port=5000): Max retries exceeded with url: /api/2.0/mlflow/"
        f"runs/get?run_id=1 (Caused by {cause})"
    )
    assert line(MlflowException(text)) == f"http://h:5000 does not answer ({reason})"
    assert line(MlflowException("one\ntwo")) == "one"
