from pathlib import Path

import pytest

from green_tune import heartbeat
from green_tune.results import Footprint


def spent(kwh: float) -> Footprint:
    methods = {"cpu": "modelled: load", "gpu": "none", "ram": "modelled: size"}
    return Footprint(
        runtime_h=0.5, energy_cpu_kwh=kwh, energy_gpu_kwh=0.0, energy_ram_kwh=0.25,
        g_per_kwh=56.0, methods=methods,
    )  # fmt: skip


def test_the_last_heartbeat_is_what_a_run_had_spent() -> None:
    for kwh in (1.0, 2.0, 3.0):
        heartbeat.beat("run", spent(kwh))
        heartbeat.beat("another", spent(9.0))
    assert heartbeat.last("run") == spent(3.0)


@pytest.mark.parametrize("kept", range(1, 40, 7))
def test_a_line_that_was_cut_in_half_gives_way_to_the_one_before(kept: int, state: Path) -> None:
    heartbeat.beat("run", spent(1.0))
    whole = (state / "run.jsonl").read_text()
    (state / "run.jsonl").write_text(whole + whole[:kept])
    assert heartbeat.last("run") == spent(1.0)


def test_a_run_without_heartbeats_and_one_that_is_forgotten_have_none() -> None:
    assert heartbeat.last("run") is None
    heartbeat.beat("run", spent(1.0))
    heartbeat.forget("run")
    heartbeat.forget("run")
    assert heartbeat.last("run") is None


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state" / "green-tune" / "heartbeats"
