"""Runs of other tools: whose names are understood, and in which units they come out."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from green_tune import blocks
from green_tune.foreign import FOREIGN, FOUND, mapped
from green_tune.query import EXPERIMENT
from green_tune.results import RunRecord

CODECARBON = {"emissions": 0.1, "emissions_rate": 2e-5, "duration": 5400.0, "energy_consumed": 0.4,
              "cpu_energy": 0.1, "gpu_energy": 0.25, "ram_energy": 0.05}  # fmt: skip
TRAINER = {"per_device_train_batch_size": "4", "gradient_accumulation_steps": "8",
           "learning_rate": "0.0002", "num_train_epochs": "3.0", "warmup_steps": "10",
           "lora_rank": "16", "lora_alpha": "32", "output_dir": "out/7",
           "model_name_or_path": "google/gemma-2b", "dataset": "squad", "seed": "42"}  # fmt: skip


def run(
    metrics: Mapping[str, float],
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> RunRecord:
    return RunRecord(
        run_id="f" * 32,
        name="theirs",
        kind="",
        status="FINISHED",
        started=datetime(2026, 11, 22, tzinfo=UTC),
        metrics=metrics,
        params=params or {},
        tags={EXPERIMENT: "12"} | dict(tags or {}),
    )


@pytest.mark.parametrize("before", ["", "codecarbon/", "codecarbon.", "system/", "a/b."])
def test_codecarbons_figures_are_found_behind_any_prefix_and_have_our_units(before: str) -> None:
    record = mapped(run({before + name: value for name, value in CODECARBON.items()}))

    assert record.kind == FOREIGN
    assert record.metrics == pytest.approx(
        {
            "emissions_kg": 0.1,
            "emissions_rate_kg_per_h": 0.072,
            "runtime_h": 1.5,
            "energy_kwh": 0.4,
            "energy_cpu_kwh": 0.1,
            "energy_gpu_kwh": 0.25,
            "energy_ram_kwh": 0.05,
        }
    )
    assert all(before + name in record.tags[FOUND] for name in CODECARBON)


def test_figures_of_two_windows_are_not_mixed() -> None:
    both = {f"fit/{name}": value for name, value in CODECARBON.items()} | {"emissions": 9.0}

    assert mapped(run(both)).metrics["emissions_kg"] == 0.1


def test_energy_is_the_sum_of_its_parts_where_all_three_are_there() -> None:
    parts = {name: CODECARBON[name] for name in ("cpu_energy", "gpu_energy", "ram_energy")}

    assert math.isclose(mapped(run(parts)).metrics["energy_kwh"], 0.4)
    del parts["ram_energy"]
    assert "energy_kwh" not in mapped(run(parts)).metrics


@pytest.mark.parametrize("name", ["eval_loss", "eval/loss", "val_loss", "validation_loss"])
def test_a_validation_loss_is_found_and_a_training_loss_is_not_taken_for_one(name: str) -> None:
    assert mapped(run({name: 1.5, "loss": 0.5, "train_loss": 0.6})).metrics == {"val_loss": 1.5}


def test_hyperparameters_have_our_names_and_nothing_else_remains() -> None:
    record = mapped(run(CODECARBON, TRAINER))

    assert record.params == {
        "batch_size": "4",
        "accumulation_steps": "8",
        "learning_rate": "0.0002",
        "warmup_steps": "10",
        "epochs": "3.0",
        "lora_rank": "16",
        "task": "squad",
        "seed": "42",
    }
    assert blocks.block(record).model == "gemma-2b"


def test_what_a_library_logged_as_none_was_not_given() -> None:
    record = mapped(run({}, {"base_model": "None", "model": "my/own", "lr": "None", "task": ""}))

    assert record.params == {}
    assert record.tags["base_model"] == "my/own"


@pytest.mark.parametrize(
    ("said", "gpu"),
    [
        ("1 x NVIDIA A100-SXM4-40GB", "a100-40"),
        ("Tesla T4", "t4"),
        ("4 x Tesla T4", "4 x t4"),
        ("l4", "l4"),
        ("Radeon", "unknown"),
        ("", "unknown"),
    ],
)
def test_gpus_are_rows_of_the_table(said: str, gpu: str) -> None:
    assert blocks.gpu(mapped(run({}, tags={"gpu_model": said}))) == gpu


def test_their_data_are_unknown_so_each_experiment_is_a_panel_of_its_own() -> None:
    one, other = (mapped(run({}, {"task": "qa"}, {EXPERIMENT: n})) for n in ("1", "2"))

    assert blocks.panel(one) != blocks.panel(other)
    assert all("unknown data" in blocks.panel(record).data for record in (one, other))
    assert len(set(blocks.titles([one, other]).values())) == 2


def test_our_own_runs_stay_as_they_are_and_so_do_mapped_ones() -> None:
    once = mapped(run(CODECARBON, TRAINER))

    assert mapped(once) is once


@pytest.mark.parametrize(("one", "other"), [("1", "12"), ("12", "123"), ("1234567", "1234568")])
def test_two_experiments_of_other_tools_are_called_differently(one: str, other: str) -> None:
    records = [mapped(run(CODECARBON, tags={EXPERIMENT: place})) for place in (one, other)]
    assert len({*blocks.titles(records).values()}) == 2
