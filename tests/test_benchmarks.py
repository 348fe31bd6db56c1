"""The training benchmark: what it draws, counts and says. It measures nothing here."""

import json
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("trl")

from benchmarks import training, training_base, training_page
from benchmarks.training import Reading
from benchmarks.training_page import Taken, times_less
from green_tune.hardware import Device
from green_tune.shapes import SHAPES

TAKEN = Taken(
    wall_s=10.0,
    cpu_s=20.0,
    gpu_j=0.0,
    examples=8,
    useful=1000,
    computed=1000,
    steps=1,
    loss_before=8.0,
    loss_after=7.0,
    flops=1e12,
    peak_flops=0.0,
    memory_gib=0.0,
    estimate_gib=0.1,
)


def spends(cpu_s: float, gpu_j: float = 0.0) -> list[Taken]:
    return [Taken(**(vars(TAKEN) | {"cpu_s": cpu_s, "gpu_j": gpu_j}))]


def test_passages_are_drawn_whole(tmp_path: Path) -> None:
    (tmp_path / "qa").mkdir()
    rows = [json.dumps({"context": f"c{n % 7}", "question": f"q{n}"}) for n in range(35)]
    for split in ("train", "validation"):
        (tmp_path / "qa" / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "room").mkdir()
    asked = Namespace(data=tmp_path, examples=12, validate=4)

    folder = training_base.chosen(asked, "qa", tmp_path / "room")

    drawn = [json.loads(row) for row in (folder / "train.jsonl").read_text().split("\n")]
    assert sorted(Counter(row["context"] for row in drawn).values()) == [5, 5, 5]
    assert len((folder / "validation.jsonl").read_text().split("\n")) == 4


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_becomes_the_model_that_it_describes(name: str) -> None:
    config = training_base.config_of(SHAPES[name])

    assert type(SHAPES[name]).of(config.to_dict()) == SHAPES[name]


def test_phases_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([(0, 0, 0), (2, 3, 0), (5, 7, 0), (10, 15, 0)])
    watch = training.Stopwatch(Device(kind="cpu", name="any", memory_gib=1.0))
    monkeypatch.setattr(watch, "_read", lambda: Reading(*next(readings)))

    def work() -> None:
        with watch.phase("eval"):
            pass

    watch.time(work)

    assert watch.total == (10 - 3, 15 - 4, 0)


def test_less_energy_is_more_times_less() -> None:
    assert times_less(spends(10.0), spends(30.0), 4.0) == pytest.approx(3)
    assert times_less(spends(99.0, 50.0), spends(1.0, 75.0), 4.0) == pytest.approx(1.5)


@pytest.mark.parametrize(("ours", "word"), [(10.0, "met"), (13.0, "not met")])
def test_the_page_says_whether_a_goal_is_met(ours: float, word: str) -> None:
    found = {training_page.GROUPED: spends(26.0), training_page.OURS: spends(ours)}

    page = training_page.report({"machine": "any"}, {("m", "qa"): found}, 4.0, "cpu")

    assert f"at least 2.5 x hf-grouped: {word}, {26 / ours:.2f}" in page
    assert "not run on a GPU" in page


def test_a_page_on_a_gpu_has_what_is_measured_there() -> None:
    found = {training_page.OURS: spends(20.0, 500.0)}

    page = training_page.report({"machine": "any"}, {("m", "qa"): found}, 4.0, "cuda")

    assert "% of peak" in page
    assert "500.00" in page  # mJ for each of 1000 tokens
