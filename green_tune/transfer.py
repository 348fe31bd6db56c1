"""How one GPU compares with another: by pairs of measured runs, or by their data sheets.

It gives factors of time and energy with their ranges, and what each rests on. What is projected
with them, and where its power comes from, is `projection`'s.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import geometric_mean
from typing import Literal, NamedTuple

from green_tune import conformal
from green_tune.blocks import UNDECIDING, gpu, group
from green_tune.budget import Amount
from green_tune.conformal import Width
from green_tune.effort import GIGA, Work
from green_tune.errors import ConfigError
from green_tune.hardware import GPUS, Gpu
from green_tune.memory import NF4_BYTES
from green_tune.pace import W_PER_KW
from green_tune.peaks import BYTES, IDLE, TERA_PER_GIGA, peak_tflops
from green_tune.results import REUSED, STOPPED_EARLY, RunRecord

Basis = Literal["same GPU", "same machine", "measured pair", "table of peaks"]

KINDS = ("train", "trial", "cell", "repeat")
FIGURES = ("runtime_h", "energy_kwh")
COMPUTING = ("train", "eval", "quality")  # what a GPU decides; the other phases are the host's
# Params that change what is learnt, and neither how much is computed nor how.
WORKLESS = UNDECIDING - {"quality_examples"} | {
    *("learning_rate", "warmup_steps", "lr_scheduler", "weight_decay", "max_grad_norm"),
    *("lora_alpha", "use_rslora", "loraplus_ratio"),
}
# How far a pair carries, the nearest first, with the factor of the range where there are too few
# errors for one (assumed, above most of what public pairs show: benchmarks/projecting.py).
DISTANCES = {"the same config": 1.1, "the same base model": 1.2, "the same model family": 1.3}
# Above what nine of ten public pairs are within, by Habitat's rule (benchmarks/projecting.py).
TABLE_FACTOR = 3.0
# Numbers that a layer keeps for each token and unit of width, 34 bytes in 16 bits: Korthikanti et
# al. 2022 (arXiv:2205.05198), without what attention keeps; written once, read once.
KEPT, TOUCHED = 17, 2
WEIGHT_READS = 2  # of a pass: forwards and back; frozen weights have no gradient to write
LAYER_WEIGHTS = 12  # times the width squared: Kaplan et al. 2020 (arXiv:2001.08361), table 1
AT_THE_RIDGE = 0.5  # Habitat's exponent there; for runs of which nobody noted the work


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What the computing phases are multiplied by, and how far off that may be."""

    basis: Basis
    time: float = 1.0
    energy: float = 1.0
    time_width: Width = field(default_factory=lambda: Width(factor=1.0))
    energy_width: Width = field(default_factory=lambda: Width(factor=1.0))
    notes: tuple[str, ...] = ()


class Pair(NamedTuple):
    """What the same work took on the target, as a part of what it took on the source."""

    model: str
    work: tuple[str, ...]
    time: float
    energy: float


def scale(record: RunRecord, row: Gpu | None, store: Sequence[RunRecord]) -> Scale:
    """How a GPU compares with the run's own: by the nearest pairs, or else by the table.

    Raises:
        ConfigError: neither tells.
    """
    if row is None or row.name == machine(record):
        return Scale(basis="same machine" if gpu(record) == "cpu" else "same GPU")
    found = pairs(record, row.name, store)
    return _of_pairs(record, row, found) if found else _of_table(record, row)


def computing(record: RunRecord) -> Amount:
    """Hours and kWh of the phases that a GPU decides; the whole run where it notes no phases."""
    if "train/runtime_h" not in record.metrics:
        return Amount(
            runtime_h=record.metrics["runtime_h"], energy_kwh=record.metrics["energy_kwh"]
        )
    return Amount(
        runtime_h=_sum(record.metrics, "runtime_h"), energy_kwh=_sum(record.metrics, "energy_kwh")
    )


def pairs(record: RunRecord, to: str, store: Sequence[RunRecord]) -> list[Pair]:
    """The work that runs of this one's model family have done both where it ran and on GPU `to`.

    Several runs of the same work, which differ by their seed and learning rate, count as their
    geometric mean. Other families say nothing: there ratios are off by 21 to 74 % (Zeus' traces).
    """
    here = machine(record)
    alike = [r for r in store if _tells(r) and _related(r, record) and machine(r) in (here, to)]
    found = []
    for work, runs in group(alike, _work).items():
        on = {place: [computing(r) for r in some] for place, some in group(runs, machine).items()}
        if here in on and to in on:
            model = runs[0].tags.get("base_model", "")
            time, energy = (_mean(on[to], name) / _mean(on[here], name) for name in FIGURES)
            found.append(Pair(model, work, time, energy))
    return found


def left_out(found: Sequence[Pair], figure: str, *, models: bool) -> list[float]:
    """For each pair its ratio over that of the others: by base model, or else one by one.

    Empty where there are no others.
    """
    ratios = []
    for pair in found:
        others = [p for p in found if (p.model != pair.model if models else p is not pair)]
        if others:
            expected = geometric_mean([getattr(p, figure) for p in others])
            ratios.append(getattr(pair, figure) / expected)
    return ratios


def flop_per_byte(
    work: Work, parameters: float, precision: str, quantization: str = "none"
) -> float:
    """Arithmetic intensity of a training (modelled): its operations over the bytes they move.

    The weights are read forwards and back in each pass; what layers keep for the way back is
    written and read once. The width follows from the number of weights and layers.
    """
    size = BYTES[precision]
    weights = parameters * (NF4_BYTES if quantization == "nf4" else size)
    width = math.sqrt(parameters / (LAYER_WEIGHTS * work.layers))
    kept = KEPT * TOUCHED * size * width * work.layers * work.processed_tokens
    return work.train_gflop * GIGA / (WEIGHT_READS * weights * work.train_passes + kept)


def time_ratio(source: Gpu, target: Gpu, precision: str, intensity: float | None) -> float:
    """Seconds on the target for one on the source, by Habitat's wave scaling (arXiv:2102.00527).

    With peaks at the precision of the run in the place of clock and multiprocessors. An intensity
    in FLOP per byte that is not known is taken to be at the ridge.
    """
    fast = peak_tflops(target, precision)
    ridge = fast * TERA_PER_GIGA / target.bandwidth_gb_per_s  # in FLOP per byte
    bound = AT_THE_RIDGE if intensity is None else _exponent(intensity, ridge)
    bandwidths = source.bandwidth_gb_per_s / target.bandwidth_gb_per_s
    rates = peak_tflops(source, precision) / fast
    return float(bandwidths**bound * rates ** (1 - bound))


def load(drawn_w: float, *, limit_w: float, idle_w: float) -> float:
    """Power above idle as a part of what lies between idle and the limit, 0 to 1."""
    if limit_w <= idle_w:
        return 1.0
    return min(1.0, max(0.0, (drawn_w - idle_w) / (limit_w - idle_w)))


def power_w(row: Gpu, share: float) -> float:
    """What a GPU of the table draws at a load; its idle power is assumed."""
    return row.power_limit_w * (IDLE + share * (1 - IDLE))


def machine(record: RunRecord) -> str:
    """What it ran on: a row of the table; a CPU or an unknown GPU by its name."""
    found = gpu(record)
    return record.tags.get("device", found) if found in ("cpu", "unknown") else found


def _tells(record: RunRecord) -> bool:
    """Whether it is a whole training, measured as its own and with the machine to itself."""
    cut = STOPPED_EARLY in record.tags or REUSED in record.tags or record.shared
    spent = record.kind in KINDS and all(record.metrics.get(name, 0.0) > 0 for name in FIGURES)
    valid = record.status == "FINISHED" and record.tags.get("energy_valid") != "false"
    return spent and valid and not cut and computing(record).energy_kwh > 0


def _related(one: RunRecord, other: RunRecord) -> bool:
    """Of the same base model, or of the same family."""
    family = one.tags.get("model_family")
    same = one.tags.get("base_model") == other.tags.get("base_model")
    return same or (bool(family) and family == other.tags.get("model_family"))


def _work(record: RunRecord) -> tuple[str, ...]:
    """All that decides what it computes; equal for runs that only learn something else.

    A trial's or cell's first validation is another's, so a single training is of other work.
    """
    asked = {k: v for k, v in record.params.items() if k not in WORKLESS and "." not in k}
    tags = {name: record.tags.get(name, "") for name in ("base_model", "data_digest")}
    tags["gpu_count"] = record.tags.get("gpu_count") or "1"
    tags["alone"] = str(record.kind == "train")
    return tuple(f"{name}={value}" for name, value in sorted((asked | tags).items()))


def _of_pairs(record: RunRecord, row: Gpu, found: Sequence[Pair]) -> Scale:
    """By the nearest pairs alone: a nearer one is not diluted with farther ones."""
    work, model = _work(record), record.tags.get("base_model", "")
    nearest = (
        [p for p in found if p.work == work],
        [p for p in found if p.model == model],
        found,
    )
    (distance, assumed), near = next(
        (known, some) for known, some in zip(DISTANCES.items(), nearest, strict=True) if some
    )
    models = len({pair.model for pair in near}) > 1
    ratios = {name: left_out(near, name, models=models) for name in ("time", "energy")}
    widths = {name: _width(some, assumed) for name, some in ratios.items()}
    time, energy = (geometric_mean([getattr(p, name) for p in near]) for name in ratios)
    return Scale(
        basis="measured pair",
        time=time,
        energy=energy,
        time_width=widths["time"],
        energy_width=widths["energy"],
        notes=(
            f"{row.name} takes {time:.2g} x the time and {energy:.2g} x the energy of "
            f"{machine(record)} in training and scoring, by {_counted(near)} of {distance}; "
            "setup and save as measured.",
            _error(ratios["energy"], widths["energy"], models=models),
        ),
    )


def _width(ratios: Sequence[float], assumed: float) -> Width:
    """Conformal where the errors are enough for it; else no narrower than the largest of them."""
    found = conformal.width(ratios, assumed)
    largest = math.exp(max((abs(math.log(ratio)) for ratio in ratios), default=0.0))
    return found if found.errors else Width(factor=max(assumed, largest))


def _counted(near: Sequence[Pair]) -> str:
    return f"{len(near)} measured pair{'s' * (len(near) > 1)}"


def _error(ratios: Sequence[float], width: Width, *, models: bool) -> str:
    """How far off the pairs are from each other, in words."""
    factor = f"Range of energy: x / {width.factor:.3g}"
    if not ratios:
        return f"{factor}, assumed: no second pair tells the error."
    off = [abs(ratio - 1) for ratio in ratios]
    out = "base model" if models else "pair"
    said = f"Each {out} left out in turn, energy is off by {sum(off) / len(off):.0%} on average"
    return f"{said}, {max(off):.0%} at most. {factor}, {_known(ratios, width)}."


def _known(ratios: Sequence[float], width: Width) -> str:
    if width.errors:
        return "at 90 % by these errors"
    largest = math.exp(max(abs(math.log(ratio)) for ratio in ratios))
    rest = "the largest of them" if largest >= width.factor else "assumed"
    return f"{rest}, as they are too few for 90 %"


def _of_table(record: RunRecord, row: Gpu) -> Scale:
    """By the data sheets of both.

    Raises:
        ConfigError: the source is no GPU of the table, or its own energy was not measured.
    """
    source = next((each for each in GPUS if each.name == gpu(record)), None)
    if source is None:
        raise ConfigError(
            f"a run on {machine(record)} says nothing of {row.name} as long as no config has "
            f"been measured on both; quote it there instead: quote gpu={row.name} and the same "
            "parameters, by the table of peaks"
        )
    precision = _precision(record)
    intensity = _intensity_of(record, precision)
    time = time_ratio(source, row, precision, intensity)
    before, after, share = _watts(record, source, row)
    known = f"{intensity:.0f} FLOP per byte (modelled)" if intensity else "an assumed intensity"
    width = Width(factor=TABLE_FACTOR)
    return Scale(
        basis="table of peaks",
        time=time,
        energy=time * after / before,
        time_width=width,
        energy_width=width,
        notes=(
            "Order of magnitude.",
            f"Time by Habitat's rule at {known} and the peaks in {precision} of {source.name} and "
            f"{row.name}: {time:.2g} x in training and scoring; setup and save as measured.",
            f"Energy at {after:.0f} W instead of {before:.0f} W: the GPU at {share:.0%} of the way "
            "from idle to its limit, as measured, and the rest of the machine as it was.",
            "The plan is taken to be the same. "
            f"Range: x / {width.factor:g}, by public pairs of GPUs.",
        ),
    )


def _precision(record: RunRecord) -> str:
    noted = record.params.get("plan.precision", "")
    return noted if noted in BYTES else "bf16"  # the two of 16 bits have one peak


def _intensity_of(record: RunRecord, precision: str) -> float | None:
    work, parameters = Work.read(record.metrics), record.metrics.get("base_parameters")
    if work is None or not parameters or not work.layers or not work.train_passes:
        return None
    return flop_per_byte(
        work, parameters, precision, record.params.get("plan.quantization", "none")
    )


def _exponent(intensity: float, ridge: float) -> float:
    """Habitat's gamma: how much of the time goes with the bandwidth, 1 to 0."""
    below = intensity / ridge
    return 1 - AT_THE_RIDGE * below if below <= 1 else AT_THE_RIDGE / below


def _watts(record: RunRecord, source: Gpu, row: Gpu) -> tuple[float, float, float]:
    """The machine's mean power while it computes, there and then; and the GPU's load, 0 to 1.

    The load is power above idle as a part of what lies between idle and the limit.
    """
    metrics, part = record.metrics, computing(record)
    phased = "train/runtime_h" in metrics
    kwh = _sum(metrics, "energy_gpu_kwh") if phased else metrics.get("energy_gpu_kwh", 0.0)
    if not kwh:
        raise ConfigError(f"run {record.run_id[:8]} has no energy of its GPU to project")
    count = float(record.tags.get("gpu_count") or 1)
    drawn = kwh / part.runtime_h * W_PER_KW
    whole = part.energy_kwh / part.runtime_h * W_PER_KW
    share = load(
        drawn / count,
        limit_w=metrics.get("gpu_power_limit_w", source.power_limit_w),
        idle_w=metrics.get("gpu_idle_w", IDLE * source.power_limit_w),
    )
    return whole, whole - drawn + count * power_w(row, share), share


def _sum(metrics: Mapping[str, float], figure: str) -> float:
    return math.fsum(metrics.get(f"{phase}/{figure}", 0.0) for phase in COMPUTING)


def _mean(amounts: Sequence[Amount], figure: str) -> float:
    return geometric_mean([getattr(amount, figure) for amount in amounts])
