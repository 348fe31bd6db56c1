"""The door to CodeCarbon: energy of the CPUs and the memory, and its own total as a cross-check.

Two things of CodeCarbon's are used. Its readers of CPU and memory (`Machine`), which the meter
asks when it likes; and, beside the meter, a tracker left to itself (`CrossCheck`), whose total is
what any user of CodeCarbon would have got. Its traps are closed in this file: only the offline
tracker, every setting given (a config file or an environment variable of CodeCarbon's would
otherwise change figures unseen), and silence is never taken for zero.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from codecarbon import OfflineEmissionsTracker
from codecarbon.external.hardware import CPU
from codecarbon.external.ram import RAM
from codecarbon.output_methods.emissions_data import EmissionsData

from green_tune.errors import MeasurementError

CROSS_CHECK_S = 15.0  # CodeCarbon's own default
SECONDS_PER_HOUR = 3600

CPU_METHODS = {
    "intel_rapl": "measured: RAPL counter",
    "cpu_load": "modelled: from CPU load, rated power {watts:g} W",
    "constant": "modelled: constant power",
}
RAM_METHOD = "modelled: watts by memory size"
RAPL = Path("/sys/class/powercap")


class Machine:
    """CPUs and memory of the whole machine, as CodeCarbon reads or models them.

    Raises:
        MeasurementError: CodeCarbon did not start.
    """

    def __init__(self) -> None:
        tracker = _tracker(g_per_kwh=1.0, gpu_indices=())
        tracker.start()  # finds the hardware; 1 to 3 s the first time in a process
        hardware = getattr(tracker, "_hardware", None) or []
        tracker.stop()
        self._cpu: Any = next((part for part in hardware if isinstance(part, CPU)), None)
        self._ram: Any = next((part for part in hardware if isinstance(part, RAM)), None)
        if not self._cpu or not self._ram:
            raise MeasurementError("CodeCarbon found neither CPU nor memory to measure")
        self.methods = {"cpu": _cpu_method(self._cpu), "ram": RAM_METHOD}

    def start(self) -> None:
        """From now on."""
        self._cpu.start()

    def spent(self, seconds: float) -> dict[str, float]:
        """Energy since the call before, that many seconds ago, in kWh by segment field."""
        _, cpu = self._cpu.measure_power_and_energy(last_duration=seconds)
        _, ram = self._ram.measure_power_and_energy(last_duration=seconds)
        return {"energy_cpu_kwh": cpu.kWh, "energy_ram_kwh": ram.kWh}


class CrossCheck:
    """CodeCarbon's own tracker over a stretch of time, left to itself."""

    def __init__(self, g_per_kwh: float, gpu_indices: Sequence[int]) -> None:
        self._tracker = _tracker(g_per_kwh, gpu_indices)
        self._tracker.start()

    def stop(self) -> EmissionsData | None:
        """Its record, without the country; None when it failed, as it hides its own errors."""
        self._tracker.stop()
        record = getattr(self._tracker, "final_emissions_data", None)
        return replace(record, country_name="", country_iso_code="") if record else None


def facts(record: EmissionsData) -> dict[str, float]:
    """CodeCarbon's totals under names with units: it counts in kg and seconds."""
    return {
        "codecarbon.runtime_h": record.duration / SECONDS_PER_HOUR,
        "codecarbon.energy_kwh": record.energy_consumed,
        "codecarbon.energy_cpu_kwh": record.cpu_energy,
        "codecarbon.energy_gpu_kwh": record.gpu_energy,
        "codecarbon.energy_ram_kwh": record.ram_energy,
        "codecarbon.emissions_kg": record.emissions,
    }


def ignored_settings(environment: Mapping[str, str]) -> str:
    """One line about CodeCarbon's settings that lie around and change nothing here; else empty."""
    found = [name for name in sorted(environment) if name.startswith("CODECARBON_")]
    found += [str(p / CONFIG) for p in (Path.home(), Path()) if (p / CONFIG).exists()]
    if not found:
        return ""
    return f"{', '.join(found)}: not used; green-tune's figures depend on its own options alone"


def unreadable_rapl(folder: Path = RAPL) -> str:
    """One line when the CPU has a counter that this user may not read; else empty."""
    counters = sorted(folder.glob("intel-rapl*/energy_uj"))
    if not counters or any(os.access(counter, os.R_OK) for counter in counters):
        return ""
    return (
        "the CPU's energy counter (RAPL) may not be read by this user, so its energy is modelled; "
        f"to measure it: sudo chmod a+r {folder}/intel-rapl*/energy_uj"
    )


def _cpu_method(cpu: Any) -> str:
    return CPU_METHODS.get(cpu._mode, f"modelled: {cpu._mode}").format(watts=cpu._tdp or 0)


def _tracker(g_per_kwh: float, gpu_indices: Sequence[int]) -> Any:
    logging.getLogger("codecarbon").setLevel(logging.ERROR)  # it logs before it reads log_level
    return OfflineEmissionsTracker(
        force_carbon_intensity_g_co2e_kwh=g_per_kwh,
        gpu_ids=list(gpu_indices) or None,
        **EVERY_OTHER_SETTING,
    )


CONFIG = ".codecarbon.config"
# Given in full: what is left out is read from .codecarbon.config files and CODECARBON_* variables.
EVERY_OTHER_SETTING: dict[str, Any] = {
    "measure_power_secs": CROSS_CHECK_S,
    "api_call_interval": -1,
    "output_handlers": [],
    "country_iso_code": "USA",  # must be some code; the intensity is forced and never looked up
    "region": None,
    "cloud_provider": None,
    "cloud_region": None,
    "country_2letter_iso_code": None,
    "project_name": "green-tune",
    "experiment_id": "green-tune",
    "experiment_name": "green-tune",
    "api_endpoint": None,
    "api_key": None,
    "emissions_endpoint": None,
    "electricitymaps_api_token": None,
    "output_dir": ".",
    "output_file": "emissions.csv",
    "output_methods": [],
    "logging_logger": None,
    "prometheus_url": None,
    "on_csv_write": "append",
    "metadata": None,
    "log_level": "error",
    "logger_preamble": "",
    "tracking_mode": "machine",
    "force_cpu_power": None,
    "force_ram_power": None,
    "force_mode_cpu_load": False,
    "pue": 1.0,
    "wue": 0.0,
    "allow_multiple_runs": True,
    "rapl_include_dram": False,
    "rapl_prefer_psys": False,
}
