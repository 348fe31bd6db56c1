import socket
import time
from pathlib import Path
from typing import Any

import pytest
from codecarbon import OfflineEmissionsTracker

from green_tune import intensity
from green_tune.emissions import Meter, Window
from green_tune.errors import MeasurementError
from green_tune.hardware import Device
from green_tune.results import Footprint

CPU = Device(kind="cpu", name="a CPU", memory_gib=8)
GPU = Device(kind="cuda", name="a GPU that is not there", memory_gib=8)


def measured(seconds: float = 1.2, country: str = "FRA") -> Footprint:
    window = Window()
    with Meter(CPU, intensity.resolve(country)).measure(window):
        time.sleep(seconds)
    assert window.footprint is not None
    return window.footprint


def test_a_window_has_energy_in_parts_and_kilograms_of_its_zone() -> None:
    footprint = measured()
    assert 1.2 / 3600 <= footprint.runtime_h < 3 / 3600
    assert footprint.energy_cpu_kwh > 0
    assert footprint.energy_ram_kwh > 0
    assert footprint.energy_gpu_kwh == 0
    assert footprint.emissions_kg == pytest.approx(footprint.energy_kwh * 56.039 / 1000, rel=1e-12)
    assert footprint.emissions_rate_kg_per_h == footprint.emissions_kg / footprint.runtime_h
    assert footprint.methods["ram"].startswith("modelled")
    assert footprint.methods["gpu"].startswith("none")


def test_settings_of_codecarbon_found_on_the_machine_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = measured()
    (tmp_path / ".codecarbon.config").write_text(
        "[codecarbon]\npue=5\nforce_ram_power=900\nforce_cpu_power=900\ncountry_iso_code=POL\n"
    )
    monkeypatch.setenv("CODECARBON_TRACKING_MODE", "process")
    configured = measured()
    for part in ("energy_ram_kwh", "energy_cpu_kwh"):
        watts = [getattr(f, part) / f.runtime_h for f in (plain, configured)]
        assert max(watts) < 3 * min(watts)  # 900 W, or a PUE of 5, would be far above


def test_nothing_is_looked_up_over_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert measured(0.2).g_per_kwh == 56.039


def test_a_block_that_raises_still_leaves_its_footprint() -> None:
    window = Window()
    with (
        pytest.raises(ZeroDivisionError),
        Meter(CPU, intensity.resolve("56")).measure(window),
    ):
        time.sleep(0.2)
        _ = 1 / 0
    assert window.footprint is not None
    assert window.footprint.energy_kwh > 0


def test_samples_grow_towards_the_footprint_while_a_window_is_open() -> None:
    window = Window()
    samples: list[Footprint] = []
    with Meter(CPU, intensity.resolve("56")).measure(window, samples.append):
        time.sleep(3)
    assert window.footprint is not None
    energies = [sample.energy_kwh for sample in samples]
    assert len(energies) >= 2
    assert energies == sorted(energies)
    assert 0 < energies[0] < energies[-1] <= window.footprint.energy_kwh * (1 + 1e-9)
    assert window.so_far == samples[-1]


def test_a_full_disk_under_the_samples_does_not_touch_the_figure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(_: Footprint) -> None:
        raise OSError(28, "No space left on device")

    window = Window()
    with Meter(CPU, intensity.resolve("56")).measure(window, full):
        time.sleep(1.3)
    assert window.footprint is not None
    assert window.footprint.energy_kwh > 0
    assert "No space left" in caplog.text


@pytest.mark.parametrize("method", ["start", "stop"])
def test_a_tracker_that_fails_in_silence_is_an_error_and_never_zero(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(self: Any) -> None:
        """As CodeCarbon does when it swallows an exception of its own."""

    monkeypatch.setattr(OfflineEmissionsTracker, method, silent)
    with pytest.raises(MeasurementError, match="CodeCarbon"):
        measured(0.01)


def test_a_failing_meter_does_not_hide_why_the_block_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OfflineEmissionsTracker, "stop", lambda self: None)
    window = Window()
    with (
        pytest.raises(ZeroDivisionError),
        Meter(CPU, intensity.resolve("56")).measure(window),
    ):
        _ = 1 / 0
    assert window.footprint is None


def test_a_gpu_that_was_trained_on_and_spent_nothing_is_an_error() -> None:
    with (
        pytest.raises(MeasurementError, match="no energy of the GPU"),
        Meter(GPU, intensity.resolve("56")).measure(Window()),
    ):
        time.sleep(0.2)
