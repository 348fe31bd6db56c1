"""Made-up stores with known effects and known nulls, for the tests of what a report concludes.

Every run is drawn from one model: log emissions and loss are sums of effects of the block, the GPU,
and the hyperparameters, plus noise of a known size. What is not given as an effect has none.
"""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from green_tune.results import EVALUATIONS, RunRecord

START = datetime(2026, 11, 22, tzinfo=UTC)
MODELS = {"gemma-2b": 2.5e9, "llama-2-7b": 6.7e9}
TASKS = {"sentiment": 1.0, "qa": 2.0, "summarization": 3.0}
RATES_KG_PER_H = {"t4": 0.04, "l4": 0.05, "a100": 0.2}
HOURS = {"t4": 2.0, "l4": 1.2, "a100": 0.2}
G_PER_KWH = 475.0
VALIDATIONS = 4


@dataclass(frozen=True, kw_only=True)
class Effects:
    """Per unit of a hyperparameter on the scale of `blocks.number`: of log emissions, and of loss.

    `bend` is the loss's curvature around a hyperparameter's best value, on that scale.
    """

    emissions: Mapping[str, float] = field(default_factory=dict)
    loss: Mapping[str, float] = field(default_factory=dict)
    bend: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    rate: Mapping[str, float] = field(default_factory=lambda: dict(RATES_KG_PER_H))
    hours: Mapping[str, float] = field(default_factory=lambda: dict(HOURS))
    noise: float = 0.05  # standard deviation of log hours and of loss
    tails: float = 0.0  # degrees of freedom of Student's noise of that scale; 0 for Gauss's
    uneven: Mapping[str, float] = field(default_factory=dict)  # what multiplies noise, by GPU
    wild: Mapping[str, float] = field(default_factory=dict)  # its logarithm's rise per unit
    slower: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    """Added to log hours of a model on a task and GPU."""
    start: float = 0.0  # the loss before training; 0: two above the end, whatever that is


def scaled(name: str, value: float) -> float:
    logarithmic = ("batch_size", "accumulation_steps", "learning_rate", "lora_rank")
    return math.log2(value) if name in logarithmic else value


def noise(dice: random.Random, effects: Effects) -> float:
    drawn = dice.gauss(0, effects.noise)
    if not effects.tails:
        return drawn
    return drawn / math.sqrt(dice.gammavariate(effects.tails / 2, 2 / effects.tails))


def run(
    dice: random.Random,
    effects: Effects,
    *,
    model: str = "gemma-2b",
    task: str = "qa",
    gpu: str = "l4",
    seed: int = 0,
    **asked: float,
) -> RunRecord:
    """One run with its course; what is not asked has the defaults of `train`."""
    default = {"batch_size": 8, "accumulation_steps": 1, "learning_rate": 2e-4, "warmup_steps": 5,
               "epochs": 1, "lora_rank": 16}  # fmt: skip
    asked = {**default, **asked}
    away = {name: scaled(name, x) - scaled(name, default[name]) for name, x in asked.items()}
    size = MODELS[model] / 2.5e9 * TASKS[task] * asked["epochs"]
    slower = sum(by * away[name] for name, by in effects.emissions.items())
    slower += effects.slower.get((model, task, gpu), 0.0)
    wild = effects.uneven.get(gpu, 1.0)
    wild *= math.exp(sum(by * away[name] for name, by in effects.wild.items()))
    hours = effects.hours[gpu] * size * math.exp(slower + wild * noise(dice, effects))
    rate = effects.rate[gpu] * math.exp(wild * noise(dice, effects) / 5)
    kg = hours * rate
    bent = sum(by * (scaled(n, asked[n]) - at) ** 2 for n, (by, at) in effects.bend.items())
    moved = sum(by * away[name] for name, by in effects.loss.items())
    loss = 1.5 + 0.2 * TASKS[task] + moved + bent + wild * noise(dice, effects)
    start = effects.start or loss + 2.0
    tokens = 1e6 * TASKS[task] * asked["epochs"]
    kwh = kg * 1000 / G_PER_KWH
    steps = max(VALIDATIONS, int(2000 * asked["epochs"] / asked["batch_size"]))
    course = [
        (steps * k // VALIDATIONS, part, start + (loss - start) * part**0.5, kg * part)
        for k, part in ((k, k / VALIDATIONS) for k in range(VALIDATIONS + 1))
    ]
    number = dice.getrandbits(128)
    return RunRecord(
        run_id=f"{number:032x}",
        name=f"{model}-{task}",
        kind="train",
        status="FINISHED",
        started=START + timedelta(seconds=dice.randrange(10**6)),
        params={"task": task, "seed": str(seed), **{k: f"{v:g}" for k, v in asked.items()}},
        metrics={
            "val_loss": loss,
            "val_bits_per_byte": 0.4 * loss,
            "start_val_loss": start,
            "emissions_kg": kg,
            "emissions_rate_kg_per_h": rate,
            "runtime_h": hours,
            "energy_kwh": kwh,
            "energy_gpu_kwh": 0.7 * kwh,
            "energy_cpu_kwh": 0.2 * kwh,
            "energy_ram_kwh": 0.1 * kwh,
            "energy_low_kwh": 0.9 * kwh,
            "energy_high_kwh": 1.4 * kwh,
            "energy_modelled_share": 0.3,
            "emissions_low_kg": 0.9 * kg,
            "emissions_high_kg": 1.4 * kg,
            "train_tokens": tokens,
            "processed_tokens": tokens,
            "base_parameters": MODELS[model],
            "steps": float(steps),
            "memory_peak_gib": 9.0,
            "memory_estimate_gib": 10.0,
        },
        tags={
            "green_tune.kind": "train",
            "base_model": model,
            "gpu_type": gpu,
            "data_digest": f"d{task[:6]}",
            "intensity_zone": "world average",
            "intensity_g_per_kwh": f"{G_PER_KWH:g}",
            "intensity_assumed": "true",
            "pue": "1.0",
            "energy_valid": "true",
            EVALUATIONS: json.dumps(course),
        },
    )


def drawn(dice: random.Random) -> dict[str, float]:
    """Hyperparameters as a random search of the default space draws them."""
    return {
        "batch_size": 2 ** dice.randint(1, 5),
        "accumulation_steps": dice.randint(1, 8),
        "learning_rate": 5e-5 * 40 ** dice.random(),
        "warmup_steps": dice.randint(0, 20),
        "epochs": dice.randint(1, 3),
        "lora_rank": 2 ** dice.randint(2, 6),
    }


def searched(seed: int, effects: Effects, runs: int, **where: str) -> list[RunRecord]:
    """A random search on one model, task and GPU."""
    dice = random.Random(seed)
    return [run(dice, effects, **where, **drawn(dice)) for _ in range(runs)]  # type: ignore[arg-type]


def grid(
    seed: int,
    effects: Effects,
    *,
    models: Sequence[str] = tuple(MODELS),
    tasks: Sequence[str] = tuple(TASKS),
    gpus: Sequence[str] = tuple(HOURS),
    seeds: int = 3,
) -> list[RunRecord]:
    """Every model on every task and GPU, with the same config and several seeds."""
    dice = random.Random(seed)
    return [
        run(dice, effects, model=model, task=task, gpu=gpu, seed=each)
        for model in models
        for task in tasks
        for gpu in gpus
        for each in range(seeds)
    ]


def quoted(
    seed: int,
    records: Sequence[RunRecord],
    *,
    evidence: str = "fit",
    off: float = 0.1,
    bias: float = 1.0,
    factor: float = 1.2,
) -> list[RunRecord]:
    """The runs with a quote each, and its errors.

    What came is `bias` times what was said, but for noise with a standard deviation of `off` on the
    logarithmic scale; the interval is what was said, divided and multiplied by `factor`.
    """
    dice = random.Random(seed)
    return [
        replace(
            record,
            metrics={**record.metrics, **_quote(dice, record, off, bias, factor)},
            tags={**record.tags, "quote.evidence": evidence, "quote.note": "made up"},
        )
        for record in records
    ]


def _quote(
    dice: random.Random, record: RunRecord, off: float, bias: float, factor: float
) -> dict[str, float]:
    found: dict[str, float] = {}
    for figure, unit in (("runtime", "h"), ("energy", "kwh"), ("emissions", "kg")):
        ratio = bias * math.exp(dice.gauss(0, off))
        said = record.metrics[f"{figure}_{unit}"] / ratio
        found |= {
            f"quote.{figure}_{unit}": said,
            f"quote.{figure}_low_{unit}": said / factor,
            f"quote.{figure}_high_{unit}": said * factor,
            f"quote.{figure}_error": ratio - 1,
        }
    del found["quote.emissions_error"]  # it is the energy's
    return found
