"""What is known of one adapter, and how its figures are put into words.

A card and a label say the same, from these facts. Every figure is given: nothing is read from a
store and nothing measured. Whatever comes from a store, such as a model's name, is one line.
"""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from green_tune import sci
from green_tune.cells import duration
from green_tune.config import TrainConfig
from green_tune.footprint import GRAMS_PER_KG
from green_tune.looks import ENERGY, MASS, unit
from green_tune.points import ASSUMED, intensities
from green_tune.report import QUALITY
from green_tune.results import RunRecord
from green_tune.sci import Sci

ALWAYS = ("model", "task", "data", "seed")  # of a command, whatever their defaults are
NEVER = ("resume", "revision")  # one goes on in a run that is over, the other is the commit's place


@dataclass(frozen=True, kw_only=True)
class Study:
    """The whole sweep that an adapter was chosen from: kg CO2e, kWh, and how many trials."""

    name: str
    emissions_kg: float
    energy_kwh: float
    trials: int


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Task metrics from 0 to 1 of the adapter and of its base model, on the same examples."""

    adapter: Mapping[str, float]
    base: Mapping[str, float]
    examples: int
    split: str = "validation"


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What `count` predictions took, without PUE, and where.

    `modelled_share`, from 0 to 1, is the part of their energy that no sensor has seen.
    """

    energy_kwh: float
    runtime_h: float
    count: int
    modelled_share: float
    site: sci.Site

    @property
    def sci(self) -> Sci:
        """Per 1,000 of them."""
        return sci.per_thousand(self.energy_kwh, self.runtime_h, self.count, self.site)

    @property
    def emissions_kg(self) -> float:
        """Of 1,000 of them, in kg CO2e, without what making the hardware took: as of a training."""
        return self.sci.operational_g / self.sci.units / GRAMS_PER_KG


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """All that is known of one adapter. Loss and kg CO2e are its own, not its run's.

    `step` is that of the validation that it is of, where it is one on the way, and `place` where
    the run has it; its bounds are then not known. `alias` is the one that it was promoted under.
    """

    model_name: str
    recipe: Mapping[str, Any]
    record: RunRecord
    val_loss: float
    emissions_kg: float
    emissions_low_kg: float | None = None
    emissions_high_kg: float | None = None
    step: int | None = None
    place: str = ""
    study: Study | None = None
    quality: Quality | None = None
    predictions: Predictions | None = None
    examples: int = 0  # trained on; 0 where it is not known
    gpus: int = 1
    alias: str = ""
    link: str = ""

    @property
    def base(self) -> str:
        """The base model's name."""
        return line(str(self.recipe["base"]["name"]))

    @property
    def task(self) -> str:
        """The task's name."""
        return line(str(self.recipe["task"]))

    @property
    def measured(self) -> Mapping[str, float]:
        """Its task metrics; none where none were measured."""
        return self.quality.adapter if self.quality else {}

    @property
    def part(self) -> float:
        """How much of the run's emissions, and so of its energy and time, the adapter had taken."""
        whole = self.record.metrics.get("emissions_kg", 0.0)
        return self.emissions_kg / whole if self.step is not None and whole else 1.0

    @property
    def energy_kwh(self) -> float:
        """The adapter's own, without PUE; NaN where the run has none."""
        return self.record.metrics.get("energy_kwh", math.nan) * self.part

    @property
    def runtime_h(self) -> float:
        """How long the adapter took; NaN where the run does not say."""
        return self.record.metrics.get("runtime_h", math.nan) * self.part

    @property
    def modelled_share(self) -> float:
        """The part of the energy that no sensor has seen, 0 to 1; NaN where it is not known."""
        return self.record.metrics.get("energy_modelled_share", math.nan)

    @property
    def sci(self) -> Sci | None:
        """Per adapter; None where the run does not say enough."""
        return sci.of(self.record, part=self.part, gpus=self.gpus)


def reproduce(record: RunRecord) -> str:
    """The command line that trains the run again, for a shell, with its commit where it is known.

    It has the params that differ from their defaults, and always model, task, data and seed.
    """
    defaults = TrainConfig().to_params()
    asked = {name: record.params[name] for name in defaults if name in record.params}
    said = {
        name: text
        for name, text in asked.items()
        if name not in NEVER and (name in ALWAYS or text != defaults[name])
    }
    if pinned := record.tags.get("base_model_commit") or asked.get("revision"):
        said |= {"revision": pinned} if pinned != defaults["revision"] else {}
    options = [f"-P {shlex.quote(f'{name}={text}')}" for name, text in said.items()]
    commit = record.tags.get("mlflow.source.git.commit", "")
    first = [f"git checkout {shlex.quote(commit)}"] if commit else []
    return "\n".join([*first, " ".join(["mlflow run . -e train", *options])])


def words(facts: CardFacts) -> str:
    """The adapter in one sentence, for who cannot see its label."""
    spent = f"{mass(facts.emissions_kg)} CO2e and {energy(facts.energy_kwh)}"
    said = [
        f"{facts.base} fine-tuned for {facts.task} with green-tune: {spent}",
        f"energy {how_known(facts.modelled_share)}",
        f"carbon intensity {line(intensities([facts.record]))}",
        f"on {hardware(facts)} in {duration(facts.runtime_h)}",
        f"validation loss {facts.val_loss:.4g}",
    ]
    if quality := best_known(facts):
        said.append(f"{quality[0]} {quality[1]:.3g}")
    if facts.study:
        said.append(f"the whole sweep {mass(facts.study.emissions_kg)} CO2e")
    if facts.predictions:
        said.append(f"{mass(facts.predictions.emissions_kg)} CO2e per 1,000 predictions")
    return "; ".join(said)


def line(text: str) -> str:
    """A name from a store on one line, without signs that nothing can show."""
    return "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))


def mass(kg: float) -> str:
    """In three digits, in the unit that a reader would choose."""
    return _amount(kg, MASS)


def energy(kwh: float) -> str:
    """The same of an energy in kWh."""
    return _amount(kwh, ENERGY)


def how_known(modelled_share: float) -> str:
    """In words, of the part of an energy that no sensor has seen, from 0 to 1; NaN if unknown."""
    if math.isnan(modelled_share):
        return "of unknown origin"
    if modelled_share in (0, 1):
        return "modelled" if modelled_share else "measured"
    return f"{100 * (1 - modelled_share):.3g} % measured, {100 * modelled_share:.3g} % modelled"


def basis(tags: Mapping[str, str], modelled_share: float) -> str:
    """What kilograms rest on, in two lines: how the energy is known, and which carbon intensity."""
    assumed = "assumed: " * (tags.get(ASSUMED) == "true")
    zone, g_per_kwh = line(tags.get("intensity_zone", "unknown")), tags.get("intensity_g_per_kwh")
    at = f" at {line(g_per_kwh)} g/kWh" if g_per_kwh else ""
    at += f" x PUE {line(pue)}" if (pue := tags.get("pue", "1.0")) not in ("1", "1.0") else ""
    return f"energy {how_known(modelled_share)}\ncarbon intensity {assumed}{zone}{at}"


def hardware(facts: CardFacts) -> str:
    """How many of which device it was trained on."""
    device = line(facts.record.tags.get("device", "")) or "an unknown device"
    return device if facts.record.tags.get("gpu_type") == sci.CPU else f"{facts.gpus} x {device}"


def best_known(facts: CardFacts) -> tuple[str, float] | None:
    """The first of its task metrics; None where none was measured."""
    return next(((QUALITY.get(name, name), x) for name, x in facts.measured.items()), None)


def _amount(value: float, units: Mapping[str, float]) -> str:
    if not math.isfinite(value):
        return "unknown"
    name, factor = unit([value], units) if value else next(iter(units.items()))
    return f"{digits(value * factor)} {name}"


def digits(number: float) -> str:
    """Three of them, large numbers in full."""
    text = f"{number:.3g}"
    return f"{float(text):.0f}" if "e+" in text else text
