"""What came out: the records of a run, with units in their names, and the front over them.

Frozen values and two pure functions. Nothing here measures, stores or prints.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Time, energy and emissions of one measured window.

    `methods` says for each part of the energy (cpu, gpu, ram) how it was obtained, in words that
    begin with measured, modelled or none.
    """

    runtime_h: float
    energy_cpu_kwh: float
    energy_gpu_kwh: float
    energy_ram_kwh: float
    g_per_kwh: float
    methods: Mapping[str, str]

    @property
    def energy_kwh(self) -> float:
        """The sum of the three parts."""
        return self.energy_cpu_kwh + self.energy_gpu_kwh + self.energy_ram_kwh

    @property
    def emissions_kg(self) -> float:
        """Energy times carbon intensity, in kg CO2e."""
        return self.energy_kwh * self.g_per_kwh / 1000

    @property
    def emissions_rate_kg_per_h(self) -> float:
        """Emissions over runtime; CodeCarbon's own field is in kg per second."""
        return self.emissions_kg / self.runtime_h if self.runtime_h else 0.0

    @property
    def energy_modelled_share(self) -> float:
        """The part of the energy, 0 to 1, that comes from a model and not from a sensor."""
        parts = {"cpu": self.energy_cpu_kwh, "gpu": self.energy_gpu_kwh, "ram": self.energy_ram_kwh}
        modelled = sum(
            kwh for part, kwh in parts.items() if self.methods[part].startswith("modelled")
        )
        return modelled / self.energy_kwh if self.energy_kwh else 0.0

    def to_metrics(self) -> dict[str, float]:
        """The figures as MLflow metrics."""
        names = (
            "runtime_h", "energy_kwh", "energy_cpu_kwh", "energy_gpu_kwh", "energy_ram_kwh",
            "energy_modelled_share", "emissions_kg", "emissions_rate_kg_per_h",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def to_tags(self) -> dict[str, str]:
        """How each part of the energy is known, as MLflow tags."""
        return {f"energy_{part}_method": how for part, how in self.methods.items()}


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished training achieved.

    `val_loss` is the mean negative log-likelihood, in nats, of a completion token over the
    whole validation set; `val_bits_per_byte` the same per byte of text, which alone compares
    models with different tokenizers.
    """

    val_loss: float
    val_bits_per_byte: float
    start_val_loss: float
    train_loss: float
    steps: int
    train_tokens: int
    trainable_parameters: int
    memory_peak_gib: float

    def to_metrics(self) -> dict[str, float]:
        """The figures as MLflow metrics; the losses are there already, as curves."""
        return {
            "start_val_loss": self.start_val_loss,
            "steps": float(self.steps),
            "train_tokens": float(self.train_tokens),
            "trainable_parameters": float(self.trainable_parameters),
            "memory_peak_gib": self.memory_peak_gib,
        }


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run as it stands in the store."""

    run_id: str
    name: str
    kind: str
    status: str
    started: datetime
    parent_id: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def front(items: Sequence[T], objectives: Callable[[T], tuple[float, ...]]) -> list[T]:
    """The items that no other item dominates, all objectives minimised, in the given order.

    One dominates another when it is nowhere worse and somewhere better; equals both stay.
    """
    points = [objectives(item) for item in items]
    return [
        item
        for item, point in zip(items, points, strict=True)
        if not any(_dominates(other, point) for other in points)
    ]


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
