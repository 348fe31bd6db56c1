import os
from pathlib import Path

import pytest

from green_tune import heartbeat
from green_tune.footprint import Basis, Measurement, Segment

BASIS = Basis(
    g_per_kwh=56.0, pue=1.2, methods={"cpu": "modelled: load", "gpu": "none", "ram": "modelled"}
)


def segment(second: int, phase: str = "train", kwh: float = 1e-3) -> Segment:
    return Segment(
        phase=phase,
        started_s=1.8e9 + second,
        runtime_h=1 / 3600,
        energy_cpu_kwh=kwh,
        energy_gpu_kwh=0.0,
        energy_ram_kwh=0.25e-3,
    )


def beaten(run_id: str = "run") -> Measurement:
    measurement = heartbeat.last(run_id)
    assert measurement is not None
    return measurement


def test_all_heartbeats_together_are_what_a_run_had_spent() -> None:
    for second in range(3):
        heartbeat.beat("run", BASIS, [segment(second)])
        heartbeat.beat("another", BASIS, [segment(second, kwh=9.0)])
    assert beaten().total.energy_cpu_kwh == pytest.approx(3e-3)
    assert beaten().basis == BASIS


def test_phases_and_the_time_series_are_kept_and_seconds_become_minutes() -> None:
    phases = ["setup"] * 5 + ["train"] * 200 + ["eval"]
    for second, phase in enumerate(phases):
        heartbeat.beat("run", BASIS, [segment(second, phase)])
    seconds = {name: round(p.runtime_h * 3600) for name, p in beaten().phases().items()}
    assert seconds == {"setup": 5, "train": 200, "eval": 1}
    assert [round(s.runtime_h * 3600) for s in beaten().segments] == [5, 60, 60, 60, 20, 1]


@pytest.mark.parametrize("kept", range(1, 100, 7))
def test_a_line_that_the_kill_cut_in_half_costs_itself_alone(kept: int, state: Path) -> None:
    heartbeat.beat("run", BASIS, [segment(0)])
    first = (state / "run.jsonl").read_text()
    heartbeat.beat("run", BASIS, [segment(1)])
    whole = (state / "run.jsonl").read_text()
    (state / "run.jsonl").write_text(whole[: len(first) + kept])
    assert beaten().total.energy_cpu_kwh == pytest.approx(1e-3)


@pytest.mark.parametrize("full_at", [0, 1])
def test_a_full_disk_leaves_no_half_a_line_and_the_next_beat_has_it_all(
    full_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    for second in range(full_at):
        heartbeat.beat("run", BASIS, [segment(second)])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        heartbeat.beat("run", BASIS, [segment(full_at)])
    monkeypatch.setattr(os, "fsync", real)
    heartbeat.beat("run", BASIS, [segment(full_at), segment(full_at + 1)])
    assert beaten().total.energy_cpu_kwh == pytest.approx((full_at + 2) * 1e-3)


def test_a_run_without_heartbeats_and_one_that_is_forgotten_have_none() -> None:
    assert heartbeat.last("run") is None
    heartbeat.beat("run", BASIS, [segment(0)])
    heartbeat.forget("run")
    heartbeat.forget("run")
    assert heartbeat.last("run") is None


def test_heartbeats_of_another_version_cost_a_line_and_not_the_command(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state.mkdir(parents=True)
    (state / "run.jsonl").write_text('{"time_s": 1.0, "runtime_h": 0.5}\n')
    assert heartbeat.last("run") is None
    assert "the heartbeats of run run cannot be read" in caplog.text


def test_flags_and_faults_that_are_known_so_far_are_kept() -> None:
    heartbeat.beat("run", BASIS, [segment(0)], ["paused for 6.0 s"], ["the counter ran backwards"])
    assert beaten().flags == ["paused for 6.0 s"]
    assert not beaten().valid


def test_where_nothing_can_be_written_nothing_has_to_be_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/full")
    with pytest.raises(OSError, match="/dev/full"):
        heartbeat.beat("run", BASIS, [segment(0)])
    heartbeat.forget("run")
    assert heartbeat.last("run") is None


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state" / "green-tune" / "heartbeats"
