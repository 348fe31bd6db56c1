"""What is written in two places says the same in both."""

import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from entrypoints.compare import CompareConfig, compare
from entrypoints.doctor import doctor
from entrypoints.evaluate import EvaluateConfig, evaluate
from entrypoints.grid import grid
from entrypoints.predict import PredictConfig, predict
from entrypoints.promote import PromoteConfig, promote
from entrypoints.pull import PullConfig, pull
from entrypoints.quote import defaults as defaults_of_quote
from entrypoints.quote import quote
from entrypoints.sweep import sweep
from entrypoints.train import train
from green_tune import grid as grids
from green_tune import space
from green_tune.config import DoctorConfig, SweepConfig, TrainConfig

ROOT = Path(__file__).parents[1]
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
COMMANDS = {
    "main": train, "train": train, "sweep": sweep, "grid": grid, "compare": compare,
    "promote": promote, "pull": pull, "predict": predict, "evaluate": evaluate, "quote": quote,
    "doctor": doctor,
}  # fmt: skip
CONFIGS = {
    "main": TrainConfig().to_params(),
    "train": TrainConfig().to_params(),
    "sweep": space.defaults() | SweepConfig().to_params(),
    "grid": grids.defaults(),
    "compare": CompareConfig().to_params(),
    "promote": PromoteConfig().to_params(),
    "pull": PullConfig().to_params(),
    "predict": PredictConfig().to_params(),
    "evaluate": EvaluateConfig().to_params(),
    "quote": defaults_of_quote(),
    "doctor": DoctorConfig().to_params(),
}
HEAVY = ("torch", "transformers", "peft", "accelerate", "mlflow", "optuna", "codecarbon",
         "datasets", "matplotlib")  # fmt: skip


def entry(name: str) -> dict[str, Any]:
    found: dict[str, Any] = PROJECT["entry_points"][name]
    return found


def test_every_command_is_an_entry_point_and_the_other_way_round() -> None:
    assert set(PROJECT["entry_points"]) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_mlproject_options_and_config_have_the_same_names_and_defaults(name: str) -> None:
    options = {p.name: p.default for p in COMMANDS[name].params if isinstance(p, click.Option)}
    declared = {key: row["default"] for key, row in entry(name)["parameters"].items()}
    assert declared == options == CONFIGS[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_parameter_of_mlproject_reaches_its_command(name: str) -> None:
    command = entry(name)["command"]
    passed = re.findall(r"--(\w+) \{(\w+)\}", command)
    assert passed == [(key, key) for key in entry(name)["parameters"]]
    module = f"entrypoints.{COMMANDS[name].name}"
    assert command.startswith(f"python -m {module} ")


def test_mlproject_types_are_those_of_the_fields() -> None:
    kinds = {int: "int", float: "float", str: "string", bool: "string"}
    for spec in fields(TrainConfig):
        assert entry("train")["parameters"][spec.name]["type"] == kinds[spec.type], spec.name  # type: ignore[index]


def test_conda_installs_what_pip_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    assert conda[-1]["pip"] == project["dependencies"]
    assert all("==" in pin for pin in project["dependencies"])


@pytest.mark.parametrize("name", ["train", "sweep", "grid", "compare", "quote", "doctor"])
def test_help_loads_nothing_heavy_and_names_every_option(name: str) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['{name}', '--help']\n"
        f"try: runpy.run_module('entrypoints.{name}', run_name='__main__')\n"
        "except SystemExit: pass\n"
        f"print('LOADED', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    text = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert text.rstrip().endswith("LOADED []")
    for option in entry(name)["parameters"]:
        assert f"--{option}" in text
