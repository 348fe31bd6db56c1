"""The Software Carbon Intensity of an adapter, and of a thousand predictions, with all its terms.

SCI = ((E x I) + M) per R, M = TE x (TiR / EL) x (RR / ToR): ISO/IEC 21031:2024, specification 1.1.
Pure values: energy and hours come from whoever measured them. What it took to make the hardware is
nowhere measured, so the constants behind M are assumed; they stand in one table, with their
sources. It knows no card and no label.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass

from green_tune.results import RunRecord

GRAMS_PER_KG = 1000
THOUSAND = 1000
YEAR_H = 365.25 * 24
CPU = "cpu"
THREADS = re.compile(r"(\d+) threads\b")
BLOOM = "Luccioni et al. 2022, arXiv:2211.02001"


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """A constant that is not measured, with its unit and where it is from."""

    value: float
    unit: str
    source: str


ASSUMED: Mapping[str, Assumption] = {
    "card": Assumption(
        value=150.0,
        unit="kg CO2e for a GPU card",
        source=f"{BLOOM}, which took it for an A100; no figure was found for smaller cards such as "
        "T4 and L4, for which the same is taken, as an upper assumption",
    ),
    "server": Assumption(
        value=2500.0, unit="kg CO2e for a server without GPUs", source=f"{BLOOM}, for one of 8 GPUs"
    ),
    "cards": Assumption(value=8.0, unit="GPUs in a server", source=BLOOM),
    "threads": Assumption(
        value=128.0, unit="threads in a server without GPUs", source="our assumption"
    ),
    "lifetime": Assumption(
        value=4 * YEAR_H,
        unit="hours of life, used or not (4 years)",
        source=f"our assumption; {BLOOM} has 6 years, 85 % of them used: a fifth less an hour",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where something ran: carbon intensity (g CO2e per kWh), PUE, and what kind of device.

    `gpu_type` is cpu or a kind of GPU, `device` its full name, `gpus` how many of it.
    """

    g_per_kwh: float
    pue: float = 1.0
    gpu_type: str = CPU
    device: str = ""
    gpus: int = 1


@dataclass(frozen=True, kw_only=True)
class Sci:
    """A Software Carbon Intensity with its terms, in the specification's order.

    `energy_kwh` x `pue` is E, `g_per_kwh` I, `embodied_kg` TE, `runtime_h` TiR, `lifetime_h` EL,
    `share` RR / ToR, `units` R, which counts what `unit` names. `hardware` says what TE and the
    share are of.

    Raises:
        ValueError: a term is negative or not finite, or there is nothing to divide by.
    """

    energy_kwh: float
    pue: float
    g_per_kwh: float
    embodied_kg: float
    runtime_h: float
    lifetime_h: float
    share: float
    units: float
    unit: str
    hardware: str

    def __post_init__(self) -> None:
        terms = [term for term in astuple(self) if not isinstance(term, str)]
        if not all(math.isfinite(term) and term >= 0 for term in terms):
            raise ValueError(f"the terms of an SCI are finite and at least 0, not {self}")
        if not self.units or not self.lifetime_h:
            raise ValueError(f"an SCI of no units, or of hardware without a lifetime: {self}")

    @property
    def operational_g(self) -> float:
        """E x I, in g CO2e."""
        return self.energy_kwh * self.pue * self.g_per_kwh

    @property
    def embodied_g(self) -> float:
        """M, in g CO2e."""
        part = self.runtime_h / self.lifetime_h * self.share
        return self.embodied_kg * GRAMS_PER_KG * part

    @property
    def g(self) -> float:
        """Both together, in g CO2e."""
        return self.operational_g + self.embodied_g

    @property
    def per_unit_g(self) -> float:
        """The intensity itself, in g CO2e per unit."""
        return self.g / self.units

    def terms(self, energy: str) -> list[tuple[str, str, str, str]]:
        """Each term: its sign, what it is, its value with its unit, and how it is known.

        `energy` says how that was obtained: measured, modelled, or how much of each.
        """
        return [
            ("E", f"energy x PUE {self.pue:g}", f"{self.energy_kwh * self.pue:.4g} kWh", energy),
            ("I", "carbon intensity", f"{self.g_per_kwh:.4g} g/kWh", "yearly average or as given"),
            ("TE", "making the hardware", f"{self.embodied_kg:.4g} kg", "assumed"),
            ("TiR", "time reserved", f"{self.runtime_h:.4g} h", "measured"),
            ("EL", "its lifetime", f"{self.lifetime_h:.5g} h", "assumed"),
            ("RR / ToR", f"share of it: {self.hardware}", f"{self.share:.4g}", "assumed"),
            ("M", "embodied: TE x TiR / EL x RR / ToR", f"{self.embodied_g:.4g} g", "assumed"),
            ("R", self.unit, f"{self.units:g}", "counted"),
        ]


def site(tags: Mapping[str, str], gpus: int = 1) -> Site | None:
    """Where a run was, by its tags; None where they do not say at which carbon intensity."""
    try:
        g_per_kwh, pue = float(tags["intensity_g_per_kwh"]), float(tags.get("pue") or 1.0)
    except (KeyError, ValueError):
        return None
    kind = tags.get("gpu_type") or "unknown"
    device = tags.get("device", "")
    return Site(g_per_kwh=g_per_kwh, pue=pue, gpu_type=kind, device=device, gpus=gpus)


def of(record: RunRecord, *, part: float = 1.0, gpus: int = 1) -> Sci | None:
    """Per adapter: of a run, or of so much of it (0 to 1) as an adapter on the way had taken.

    None where the run does not say what it spent, how long, or at which carbon intensity.
    """
    where = site(record.tags, gpus)
    if where is None or not record.metrics.keys() >= {"energy_kwh", "runtime_h"}:
        return None
    spent, hours = record.metrics["energy_kwh"], record.metrics["runtime_h"]
    return _sci(spent * part, hours * part, where, 1.0, "adapter")


def per_thousand(energy_kwh: float, runtime_h: float, count: int, where: Site) -> Sci:
    """Per 1,000 predictions, of which `count` took this energy (without PUE) and these hours.

    Raises:
        ValueError: there was no prediction, or a figure is no number of at least 0.
    """
    return _sci(energy_kwh, runtime_h, where, count / THOUSAND, "1,000 predictions")


def _sci(energy_kwh: float, runtime_h: float, where: Site, units: float, unit: str) -> Sci:
    embodied_kg, share, hardware = _on_cpu(where) if where.gpu_type == CPU else _on_gpus(where)
    return Sci(
        energy_kwh=energy_kwh,
        pue=where.pue,
        g_per_kwh=where.g_per_kwh,
        embodied_kg=embodied_kg,
        runtime_h=runtime_h,
        lifetime_h=ASSUMED["lifetime"].value,
        share=share,
        units=units,
        unit=unit,
        hardware=hardware,
    )


def _on_gpus(where: Site) -> tuple[float, float, str]:
    """A server full of such cards, and the run's part of them."""
    cards, card, server = (ASSUMED[name].value for name in ("cards", "card", "server"))
    words = f"{where.gpus} of {cards:.0f} GPUs of {card:g} kg each in a server of {server:g} kg"
    return cards * card + server, where.gpus / cards, words


def _on_cpu(where: Site) -> tuple[float, float, str]:
    """A server without GPUs, and the machine's part of its threads; all of it if not known."""
    server, threads = ASSUMED["server"].value, ASSUMED["threads"].value
    found = THREADS.search(where.device)
    if not found:
        return server, 1.0, f"a whole server of {server:g} kg, as the threads are not known"
    words = f"{found[1]} of {threads:.0f} threads of a server of {server:g} kg"
    return server, min(1.0, int(found[1]) / threads), words
