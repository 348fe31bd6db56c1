"""The meter on GPUs, through a fake NVML: what it counts, and what it refuses to believe."""

from collections.abc import Callable

import pynvml
import pytest
from fakes import JOULES_PER_KWH, NEVER_S, FakeClock, FakeGpu, FakeNvml, running, watts

from green_tune.footprint import Measurement
from green_tune.hardware import Device
from green_tune.nvml import GpuEnergy


def gpu_device(gpu: FakeGpu, index: int = 0) -> Device:
    return Device(kind="cuda", name=gpu.name, memory_gib=gpu.gib, uuid=gpu.uuid, index=index)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def gpu(clock: FakeClock) -> FakeGpu:
    return FakeGpu(clock=clock.monotonic)


@pytest.fixture
def measure(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock, gpu: FakeGpu
) -> Callable[..., Measurement]:
    """A run on one fake GPU: 20 s of setup at rest, then a training in readings of a second."""
    FakeNvml(monkeypatch, gpu)

    def run(
        seconds: int = 120, meanwhile: Callable[[int], None] = lambda second: None
    ) -> Measurement:
        with running(clock, GpuEnergy([gpu_device(gpu)])) as meter:
            gpu.draw(50.0)
            gpu.utilisation = 0
            clock.pass_(20)
            meter.read()
            gpu.draw(300.0)
            gpu.utilisation = 100
            with meter.phase("train"):
                for second in range(seconds):
                    meanwhile(second)
                    clock.pass_(1)
                    meter.read()
            return meter.close()[0]

    return run


def test_a_gpu_counts_by_its_counter_and_names_its_limit_and_idle_power(
    measure: Callable[..., Measurement],
) -> None:
    measurement = measure()
    assert measurement.faults == []
    assert measurement.flags == []
    assert watts(measurement, "train") == pytest.approx(328, rel=1e-9)
    assert watts(measurement, "setup") == pytest.approx(78, rel=1e-9)
    assert measurement.facts == {"gpu_power_limit_w": 400.0, "gpu_idle_w": 50.0}
    assert measurement.basis.methods["gpu"] == "measured: NVML energy counter"


def test_a_gpu_without_a_counter_is_measured_by_its_power_readings(
    measure: Callable[..., Measurement], gpu: FakeGpu
) -> None:
    gpu.counts = False
    measurement = measure()
    assert measurement.valid
    assert measurement.basis.methods["gpu"].startswith("measured: NVML power readings")
    assert watts(measurement, "train") == pytest.approx(328, rel=0.01)


def at(moment: int, change: Callable[[], None]) -> Callable[[int], None]:
    return lambda second: change() if second == moment else None


def test_a_counter_that_runs_backwards_makes_the_run_invalid(
    measure: Callable[..., Measurement], gpu: FakeGpu
) -> None:
    def reload_driver() -> None:
        gpu.counted_mj = 0.0

    measurement = measure(120, at(60, reload_driver))
    assert [f for f in measurement.faults if "ran backwards" in f]
    assert watts(measurement, "train") == pytest.approx(328, rel=0.02)  # by its power meanwhile


def test_a_gpu_that_is_lost_in_mid_run_makes_the_run_invalid(
    measure: Callable[..., Measurement], gpu: FakeGpu
) -> None:
    measurement = measure(120, at(60, lambda: setattr(gpu, "lost", True)))
    assert any("could no longer be read at the end" in fault for fault in measurement.faults)


def test_a_gpu_that_is_lost_for_a_while_loses_no_joule_and_is_flagged(
    measure: Callable[..., Measurement], gpu: FakeGpu
) -> None:
    measurement = measure(120, lambda second: setattr(gpu, "lost", 30 <= second < 40))
    assert measurement.valid
    assert watts(measurement, "train") == pytest.approx(328, rel=1e-9)
    assert measurement.flags == ["GPU unreadable, made good by the next reading, for 10.0 s"]


def test_a_gpu_without_a_counter_that_is_lost_for_a_while_makes_the_run_invalid(
    measure: Callable[..., Measurement], gpu: FakeGpu
) -> None:
    gpu.counts = False
    measurement = measure(120, lambda second: setattr(gpu, "lost", 30 <= second < 40))
    assert any("could not be read, and it has no counter" in fault for fault in measurement.faults)


def test_a_counter_that_stands_still_makes_even_a_short_run_invalid(
    measure: Callable[..., Measurement], gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "count", lambda: None)
    measurement = measure(20)
    (still,) = [fault for fault in measurement.faults if "stands still" in fault]  # once, not 20
    assert gpu.name in still
    assert watts(measurement, "train") == pytest.approx(328, rel=0.05)  # by its power meanwhile


def test_a_gpu_whose_power_cannot_be_read_is_counted_all_the_same(
    measure: Callable[..., Measurement], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: object) -> float:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", refuse)
    measurement = measure(30)
    assert measurement.valid
    assert watts(measurement, "train") == pytest.approx(328, rel=1e-9)


def test_power_above_the_limit_makes_the_run_invalid(
    measure: Callable[..., Measurement], gpu: FakeGpu
) -> None:
    gpu.limit_w = 200.0
    assert any("more than 1.1 x its limit of 200 W" in f for f in measure().faults)


def test_an_idle_reading_of_a_busy_gpu_makes_the_run_invalid(
    measure: Callable[..., Measurement], gpu: FakeGpu
) -> None:
    measurement = measure(120, lambda second: gpu.draw(55.0))
    assert any("100% busy in train at" in fault for fault in measurement.faults)


def test_a_counter_and_power_readings_that_disagree_make_the_run_invalid(
    measure: Callable[..., Measurement], gpu: FakeGpu
) -> None:
    def drift(second: int) -> None:
        gpu.counted_mj += 60_000

    assert any("power readings" in fault for fault in measure(120, drift).faults)


def test_other_processes_on_the_gpu_are_flagged(
    measure: Callable[..., Measurement], gpu: FakeGpu
) -> None:
    gpu.processes = 3
    assert measure().flags == [
        "GPU shared with other processes, whose energy is in it, for 140.0 s"
    ]


def test_two_meters_on_one_machine_and_gpu_count_each_joule_once(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock, gpu: FakeGpu
) -> None:
    FakeNvml(monkeypatch, gpu)
    device = gpu_device(gpu)
    with running(clock, GpuEnergy([device])) as one:
        clock.pass_(10)
        with running(clock, GpuEnergy([device])) as two:
            clock.pass_(20)
            first, _ = one.close()
            second, _ = two.close()
    for part, power in (("energy_cpu_kwh", 8), ("energy_ram_kwh", 20), ("energy_gpu_kwh", 300)):
        together = getattr(first.total, part) + getattr(second.total, part)
        assert together == pytest.approx(power * 30 / JOULES_PER_KWH, rel=1e-9)
        assert getattr(second.total, part) == pytest.approx(power * 10 / JOULES_PER_KWH, rel=1e-9)
    assert first.flags == ["shared with other measured runs, split equally, for 30.0 s"]


def test_a_pause_is_a_segment_of_its_own(
    measure: Callable[..., Measurement], clock: FakeClock
) -> None:
    def stop_and_continue() -> None:
        clock.pass_(3 * NEVER_S, cpus=0)

    measurement = measure(30, at(15, stop_and_continue))
    assert measurement.phases()["paused"].runtime_h * 3600 == pytest.approx(3 * NEVER_S + 1)
    assert measurement.phases()["train"].runtime_h * 3600 == pytest.approx(29)
    assert measurement.flags == [f"paused for {3 * NEVER_S + 1:.1f} s"]


def test_a_library_that_keeps_readings_away_but_works_is_not_a_pause(
    measure: Callable[..., Measurement], clock: FakeClock
) -> None:
    measurement = measure(30, at(15, lambda: clock.pass_(3 * NEVER_S, cpus=0.9)))
    assert "paused" not in measurement.phases()
