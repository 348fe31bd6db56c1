"""The door to CodeCarbon: the energy of a measured window, in parts, and what it emitted.

CodeCarbon measures; the kilograms are computed here, from its energy and one intensity. Its
traps are closed in this file: only the offline tracker, every setting given (a config file or
an environment variable of CodeCarbon's would otherwise change figures unseen), and an answer
that is missing or zero is an error, since a run of 0 kg would win every comparison.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from codecarbon import OfflineEmissionsTracker
from codecarbon.output_methods.base_output import BaseOutput

from green_tune.errors import MeasurementError
from green_tune.hardware import Device
from green_tune.intensity import Intensity
from green_tune.results import Footprint

log = logging.getLogger(__name__)

INTERVAL_S = 1.0  # below this, CodeCarbon loses the time that its own sampling takes
SECONDS_PER_HOUR = 3600

CPU_METHODS = {
    "intel_rapl": "measured: RAPL counter",
    "cpu_load": "modelled: CPU load x rated power",
    "constant": "modelled: constant power",
}


class Window:
    """A measured stretch of time; its footprint is there once the block has ended.

    `so_far` is the footprint at the last sample, at most one interval old.
    """

    def __init__(self) -> None:
        self.footprint: Footprint | None = None
        self.so_far: Footprint | None = None


OnSample = Callable[[Footprint], None]


def ignore(_: Footprint) -> None:
    """For windows whose samples nobody keeps."""


class Meter:
    """Measures what this machine spends for a job on one device."""

    def __init__(self, device: Device, intensity: Intensity) -> None:
        self._device = device
        self._intensity = intensity
        self._warm = False

    def warm_up(self) -> None:
        """Makes CodeCarbon look at the hardware once, so that no window pays for it (1 to 3 s)."""
        if self._warm:
            return
        self._warm = True
        tracker = self._tracker(_Live())
        tracker.start()
        tracker.stop()

    @contextmanager
    def measure(self, window: Window, on_sample: OnSample = ignore) -> Iterator[None]:
        """Measures a block. The window's footprint is set even when the block raises.

        `on_sample` gets the footprint so far, once an interval, from a thread of its own; if it
        raises an OSError, such as a full disk, the figure is not touched.

        Raises:
            MeasurementError: CodeCarbon did not start, or gave no figure or no energy.
        """
        live = _Live()
        tracker = self._tracker(live)
        started_s = time.perf_counter()

        def sample(total: Any) -> None:
            window.so_far = self._footprint(total, tracker, started_s)
            on_sample(window.so_far)

        live.sample = sample
        tracker.start()
        _check_started(tracker)
        try:
            yield
        except BaseException:
            self._finish(window, tracker, started_s, quiet=True)
            raise
        self._finish(window, tracker, started_s)

    def _finish(self, window: Window, tracker: Any, started_s: float, quiet: bool = False) -> None:
        tracker.stop()
        try:
            window.footprint = self._final(tracker, started_s)
        except MeasurementError as error:
            if not quiet:  # else the block's own error is the one to report
                raise
            log.warning("%s", error)

    def _final(self, tracker: Any, started_s: float) -> Footprint:
        total = getattr(tracker, "final_emissions_data", None)
        if total is None:
            raise MeasurementError("CodeCarbon gave no figure for this run")
        footprint = self._footprint(total, tracker, started_s)
        _check_plausible(footprint, self._device.kind == "cuda")
        return footprint

    def _footprint(self, total: Any, tracker: Any, started_s: float) -> Footprint:
        on_gpu = self._device.kind == "cuda"
        return Footprint(
            runtime_h=(time.perf_counter() - started_s) / SECONDS_PER_HOUR,
            energy_cpu_kwh=total.cpu_energy,
            energy_gpu_kwh=total.gpu_energy if on_gpu else 0.0,
            energy_ram_kwh=total.ram_energy,
            g_per_kwh=self._intensity.g_per_kwh,
            methods=_methods(tracker, on_gpu),
        )

    def _tracker(self, live: "_Live") -> Any:
        logging.getLogger("codecarbon").setLevel(logging.ERROR)  # it logs before it reads log_level
        return OfflineEmissionsTracker(
            force_carbon_intensity_g_co2e_kwh=self._intensity.g_per_kwh,
            measure_power_secs=INTERVAL_S,
            api_call_interval=1,
            gpu_ids=[self._device.index] if self._device.kind == "cuda" else None,
            output_handlers=[live],
            **EVERY_OTHER_SETTING,
        )


# Given in full: what is left out is read from .codecarbon.config files and CODECARBON_* variables.
EVERY_OTHER_SETTING: dict[str, Any] = {
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


class _Live(BaseOutput):
    """Hands each sample's total on. What it raised would cost CodeCarbon its own total."""

    def __init__(self) -> None:
        self.sample: Callable[[Any], None] | None = None
        self._warned = False

    def live_out(self, total: Any, delta: Any) -> None:
        try:
            if self.sample:
                self.sample(total)
        except OSError as error:
            if not self._warned:
                log.warning("what was spent so far could not be written down: %s", error)
            self._warned = True


def _check_started(tracker: Any) -> None:
    """CodeCarbon swallows its own exceptions; a tracker that is not alive is found only so."""
    if getattr(tracker, "_start_time", None) is None or not getattr(tracker, "_hardware", None):
        raise MeasurementError("CodeCarbon did not start, so this run cannot be measured")


def _check_plausible(footprint: Footprint, on_gpu: bool) -> None:
    if footprint.energy_kwh <= 0:
        raise MeasurementError("CodeCarbon counted no energy at all for this run")
    if on_gpu and footprint.energy_gpu_kwh <= 0:
        raise MeasurementError("CodeCarbon counted no energy of the GPU that was trained on")


def _methods(tracker: Any, on_gpu: bool) -> dict[str, str]:
    modes = [hw._mode for hw in tracker._hardware if hasattr(hw, "_mode")]
    cpu = CPU_METHODS.get(modes[0], f"modelled: {modes[0]}") if modes else "none"
    gpu = "measured: NVML through CodeCarbon" if on_gpu else "none: no GPU was used"
    return {"cpu": cpu, "gpu": gpu, "ram": "modelled: watts by memory size"}
