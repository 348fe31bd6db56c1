"""Quotes as a user asks for them: before a run, after it, elsewhere, and within a budget."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import program
import pytest
from matplotlib import image
from mlflow import MlflowClient
from mlflow.entities import Run

from green_tune import samples

pytestmark = pytest.mark.e2e

FRANCE_G_PER_KWH = 56.039
PATIENCE_S = 120.0


class House:
    """A copy of the program beside an empty store, and data of one's own."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        program.copy_to(folder)
        self.client = MlflowClient(uri)
        self.data = folder / "reviews"
        self.data.mkdir()
        for split, count in (("train", 64), ("validation", 16)):
            rows = samples.rows("sentiment", split)[:count]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (self.data / f"{split}.jsonl").write_text(text, encoding="utf-8")

    def do(
        self,
        entry: str,
        asked: Mapping[str, str],
        *,
        launcher: bool = False,
        fails: int = 0,
        launched: str = "",
    ) -> str:
        """A whole command; what it said, which is its error where it `fails` with that code.

        `launched` is a run that a launcher has made for it.
        """
        command = [sys.executable, "-m", f"entrypoints.{entry}"]
        words = [word for key, text in asked.items() for word in (f"--{key}", text)]
        if launcher:
            command = ["mlflow", "run", ".", "-e", entry, "--env-manager", "local"]
            words = [word for key, text in asked.items() for word in ("-P", f"{key}={text}")]
        own = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(self.folder / "hub"),
            "COLUMNS": "80",
        } | ({"MLFLOW_RUN_ID": launched} if launched else {})
        done = subprocess.run(
            command + words, cwd=self.folder, env=os.environ | own, text=True,
            capture_output=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == fails, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr if fails else done.stdout

    def runs(self, kind: str) -> list[Run]:
        found = self.client.search_runs(
            ["0"], f"tags.`green_tune.kind` = '{kind}'", order_by=["attributes.start_time ASC"]
        )
        return list(found)


@pytest.fixture
def house(tmp_path: Path, store_uri: str) -> House:
    folder = tmp_path / "house"
    folder.mkdir()
    return House(folder, store_uri)


def offered(folder: Path) -> list[dict[str, object]]:
    """What a quote has left in its folder."""
    rows: list[dict[str, object]] = json.loads((folder / "quote.json").read_text())
    return rows


def said(text: str, label: str) -> str:
    """The line that begins with a label, without it."""
    (line,) = [line for line in text.splitlines() if line.startswith(label)]
    return line.removeprefix(label).strip()


def test_a_run_is_quoted_by_a_probe_then_by_itself_and_can_be_projected(house: House) -> None:
    asked = {"data": str(house.data), "task": "sentiment", "gpu": "cpu"}
    before = house.do("quote", asked | {"probe_seconds": "1"})
    assert said(before, "rests on").startswith("a probe: ")
    house.do("train", asked)
    after = house.do("quote", asked)
    assert said(after, "rests on") == "this very config, measured here once before"
    (probe,), (first, again), (run,) = (house.runs(kind) for kind in ("probe", "quote", "train"))
    assert probe.data.tags["mlflow.parentRunId"] == first.info.run_id
    assert run.data.tags["quote.evidence"] == "probe"
    assert probe.info.run_id[:8] in run.data.tags["quote.note"]
    came, figures = run.data.metrics, ("runtime_h", "energy_kwh", "emissions_kg")
    for name in figures:  # the probe foretells the run as it has told the user; then itself does
        foretold = first.data.metrics[f"quote.{name}"]
        assert came[f"quote.{name}"] == pytest.approx(foretold, rel=1e-6)
        assert again.data.metrics[f"quote.{name}"] == pytest.approx(came[name], rel=1e-6)
    assert came["quote.energy_error"] == pytest.approx(
        came["energy_kwh"] / came["quote.energy_kwh"] - 1
    )
    for quote in (first, again):
        assert quote.info.status == "FINISHED"
        assert quote.data.metrics["emissions_kg"] > 0
        assert quote.data.tags["energy_valid"] == "true"

    launched = house.client.create_run("0").info.run_id
    there = {"run": run.info.run_id, "country": "FRA"}
    elsewhere = house.do("quote", there, launched=launched)
    assert house.client.get_run(launched).data.tags["green_tune.kind"] == "quote"
    grams = came["energy_kwh"] * FRANCE_G_PER_KWH
    (row,) = [line for line in elsewhere.splitlines() if f" {grams:.3g} " in line]
    assert ".." not in row  # it has no range: the same machine, and a figure that is known
    assert "Emissions at France at 56.039 g/kWh" in elsewhere
    moved = house.do("quote", there | {"pue": "1.5", "output": "there"})
    assert "France, PUE 1.5" in moved
    (left,) = offered(house.folder / "there")
    assert left["emissions_kg"] == pytest.approx(1.5 * grams / 1000)
    refused = house.do("quote", {"run": run.info.run_id, "gpu": "t4"}, fails=2)
    (line,) = [line for line in refused.splitlines() if line.startswith("error: ")]
    assert "says nothing of t4" in line
    assert len(house.runs("quote")) == 3


def test_a_gated_model_is_quoted_offline_on_gpus_that_nobody_here_owns(house: House) -> None:
    there = house.folder / "offers"
    asked = {"model": "llama-2-7b", "gpu": "t4,l4,a100", "task": "qa"}
    screen = house.do("quote", asked | {"output": str(there)})
    answer, _, _ = screen.partition("this quote itself took ")  # below it are addresses
    assert max(len(line) for line in answer.splitlines()) <= 80
    assert "(assumed: four characters each)" in " ".join(screen.split())
    rows = {str(row["gpu"]): row for row in offered(there)}
    assert list(rows) == ["t4", "l4", "a100-40", "a100-80"]
    for gpu, row in rows.items():
        assert (row["fits"], row["here"], row["evidence"]) == (True, False, "table")
        assert (row["plan"] == "nf4") == (gpu == "t4")
        shown = next(line for line in screen.splitlines() if line.startswith(f"{gpu} "))
        assert f"{float(str(row['energy_kwh'])):.3g}" in shown.split()
        for name in ("runtime{}_h", "energy{}_kwh", "emissions{}_kg"):
            low, mid, high = (float(str(row[name.format(end)])) for end in ("_low", "", "_high"))
            assert 0 < low < mid < high
    plot = image.imread(there / "padding-llama-2-7b-qa.png")
    assert plot.std() > 0
    assert min(plot.shape[:2]) > 200
    (quote,) = house.runs("quote")
    left = {file.path for file in house.client.list_artifacts(quote.info.run_id)}
    assert {"quote.json", "padding-llama-2-7b-qa.png"} <= left
    assert house.runs("probe") == []


def test_a_sweep_beyond_its_budget_is_told_what_to_leave_out(house: House) -> None:
    asked = {"command": "sweep", "gpu": "cpu", "probe": "never", "trials": "40"}
    enough = house.do("quote", asked | {"output": "whole", "emissions_budget_kg": "1"})
    assert "within the budget of 1e+03 g" in enough
    (whole,) = offered(house.folder / "whole")
    budget_kg = 0.7 * float(str(whole["emissions_kg"]))
    screen = house.do("quote", asked | {"emissions_budget_kg": str(budget_kg)})
    assert "a sweep of 40 trials: tiny on sentiment" in screen
    _, _, proposals = screen.partition("what would stay within:\n")
    found = re.findall(r"^  (\S+)=(\d+)  \(([\d.]+) g\)$", proposals, re.MULTILINE)
    lowered = {name: (int(value), float(grams)) for name, value, grams in found}
    assert 0 < lowered["trials"][0] < 40
    assert all(0 < grams < 1000 * budget_kg * 1.005 for _, grams in lowered.values())


def test_a_grid_is_quoted_by_the_launcher_with_a_probe_for_each_of_its_tasks(house: House) -> None:
    asked = {"command": "grid", "gpu": "cpu", "task": "qa,sentiment", "seed": "0,1",
             "probe_seconds": "1", "quality_examples": "2"}  # fmt: skip
    screen = house.do("quote", asked, launcher=True)
    assert "a grid of 4 runs: tiny on qa, sentiment" in screen
    (quote,) = house.runs("quote")
    assert quote.info.status == "FINISHED"
    assert quote.data.params["command"] == "grid"
    probes = house.runs("probe")
    assert [run.data.tags["mlflow.parentRunId"] for run in probes] == [quote.info.run_id] * 2
    assert len({run.data.tags["quote.sounded"] for run in probes}) == 2
    assert len(house.client.search_runs(["0"])) == 3
