import socket
import time
from pathlib import Path
from typing import Any

import pytest
from codecarbon import OfflineEmissionsTracker

from green_tune.emissions import CrossCheck, Machine, facts, ignored_settings, unreadable_rapl
from green_tune.errors import MeasurementError
from green_tune.footprint import Basis
from green_tune.meter import Meter


def spent(seconds: float = 0.5) -> dict[str, float]:
    machine = Machine()
    machine.start()
    started_s = time.perf_counter()
    time.sleep(seconds)
    return machine.spent(time.perf_counter() - started_s)


def test_cpus_and_memory_are_read_when_asked_and_say_how_they_are_known() -> None:
    watts = {name: kwh * 3.6e6 / 0.5 for name, kwh in spent(0.5).items()}
    assert set(watts) == {"energy_cpu_kwh", "energy_ram_kwh"}
    assert 0.1 < watts["energy_cpu_kwh"] < 2000
    assert 1 < watts["energy_ram_kwh"] < 500
    methods = Machine().methods
    assert methods["ram"].startswith("modelled")
    assert methods["cpu"].startswith(("measured", "modelled"))


def test_memory_of_constant_power_adds_up_however_often_it_is_read() -> None:
    machine = Machine()
    machine.start()
    parts = [machine.spent(seconds)["energy_ram_kwh"] for seconds in (0.001, 0.25, 3.0, 0.0004)]
    assert sum(parts) == pytest.approx(machine.spent(3.2514)["energy_ram_kwh"], rel=1e-9)


def test_codecarbons_own_total_is_in_our_units_and_names_no_country() -> None:
    check = CrossCheck(56.0, ())
    time.sleep(0.5)
    record = check.stop()
    assert record is not None
    theirs = facts(record)
    assert 0.5 / 3600 <= theirs["codecarbon.runtime_h"] < 2 / 3600
    kwh = theirs["codecarbon.energy_kwh"]
    assert theirs["codecarbon.emissions_kg"] == pytest.approx(kwh * 0.056, rel=1e-9)
    parts = [theirs[f"codecarbon.energy_{part}_kwh"] for part in ("cpu", "gpu", "ram")]
    assert kwh == pytest.approx(sum(parts), rel=1e-9)
    assert record.country_name == record.country_iso_code == ""


def test_settings_of_codecarbon_found_on_the_machine_change_nothing_and_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert ignored_settings({"PATH": "/bin"}) == ""
    plain = [spent(0.3) for _ in range(3)]
    (tmp_path / ".codecarbon.config").write_text(
        "[codecarbon]\npue=5\nforce_ram_power=900\nforce_cpu_power=900\ncountry_iso_code=POL\n"
    )
    monkeypatch.setenv("CODECARBON_TRACKING_MODE", "process")
    configured = [spent(0.3) for _ in range(3)]
    for part in ("energy_ram_kwh", "energy_cpu_kwh"):
        # 900 W, or a PUE of 5, would be far above, each time; what else runs here comes and goes.
        assert min(kwh[part] for kwh in configured) < 3 * max(kwh[part] for kwh in plain)
    line = ignored_settings({"CODECARBON_TRACKING_MODE": "process"})
    assert line.startswith("CODECARBON_TRACKING_MODE, .codecarbon.config: not used")


def test_a_stale_lock_of_codecarbons_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    (tmp_path / ".codecarbon.lock").write_text("")
    assert spent(0.1)["energy_ram_kwh"] > 0
    assert CrossCheck(56.0, ()).stop() is not None


def test_nothing_is_looked_up_over_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with Meter(Machine(), None, Basis(g_per_kwh=56.0)) as meter:
        meter.open()
        time.sleep(0.2)
        measurement, record = meter.close()
    assert measurement.valid
    assert record.emissions == pytest.approx(record.energy_consumed * 0.056)
    assert "Qu" not in str(record)


def test_codecarbons_total_over_a_run_agrees_with_ours() -> None:
    with Meter(Machine(), None, Basis(g_per_kwh=56.0)) as meter:
        meter.open()
        for _ in range(4):
            with meter.phase("train"):
                time.sleep(0.4)
        measurement, _ = meter.close()
    ours, theirs = measurement.total.energy_ram_kwh, measurement.facts["codecarbon.energy_ram_kwh"]
    assert ours == pytest.approx(theirs, rel=0.1)
    assert measurement.faults == []


def test_a_machine_that_codecarbon_does_not_find_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def silent(self: Any) -> None:
        """As CodeCarbon does when it swallows an exception of its own."""

    monkeypatch.setattr(OfflineEmissionsTracker, "start", silent)
    with pytest.raises(MeasurementError, match="neither CPU nor memory"):
        Machine()


@pytest.mark.parametrize("method", ["start", "stop"])
def test_a_tracker_that_fails_in_silence_makes_the_run_invalid(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine()
    monkeypatch.setattr(OfflineEmissionsTracker, method, lambda self: None)
    with Meter(machine, None, Basis(g_per_kwh=56.0)) as meter:
        meter.open()
        time.sleep(0.1)
        measurement, record = meter.close()
    assert record is None
    assert measurement.faults == ["CodeCarbon gave no figure to compare with"]
    assert measurement.total.energy_kwh > 0


def test_a_counter_that_may_not_be_read_is_said_with_what_would_help(tmp_path: Path) -> None:
    assert unreadable_rapl(tmp_path) == ""
    (tmp_path / "intel-rapl:0").mkdir()
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    counter.write_text("1")
    assert unreadable_rapl(tmp_path) == ""
    readable = "green_tune.emissions.os.access"
    with pytest.MonkeyPatch.context() as patch:  # root may read everything
        patch.setattr(readable, lambda path, mode: False)
        line = unreadable_rapl(tmp_path)
    assert "its energy is modelled" in line
    assert "sudo chmod a+r" in line
