"""Forecasts without a measurement, held against public figures: memory, runtimes, energies, powers.

    python -m benchmarks.backtests

What a quote rests on where nothing was measured (`peaks`, `memory`), for runs that others have
published. Every row names its source; what a source leaves open is derived or assumed, and the page
says which. Nothing here is measured by us, and nothing depends on the machine. Rows that fitted a
constant of `peaks` are marked, and are in no statistic.
"""

import argparse
import json
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations

from benchmarks.record import RESULTS, table
from green_tune import effort, fit, peaks
from green_tune.effort import Adapter, Work
from green_tune.hardware import GPUS, Gpu
from green_tune.memory import GIB, Choices, estimate
from green_tune.pace import Pace
from green_tune.shapes import SHAPES, Shape
from green_tune.workload import Counts

MINUTE, KILO, GIGA, MEGA = 60.0, 1e3, 1e9, 1e6
KWH_PER_MJ = 1 / 3.6
LEVEL = 0.9
FIGURES = 100  # and above: no decimals

# Alpaca's token lengths, in LLaMA's tokens and with its prompt: a log-normal distribution through
# the first two bars of the histogram in tloen/alpaca-lora's lengths.ipynb (42,516 of 52,002 up to
# 184.5, 50,766 up to 309). Its mean, 134, is near the 6.6 M tokens of the 52,002 examples that
# tatsu-lab/stanford_alpaca#8 counts. LitGPT's Alpaca2k and Gemma's tokenizer are taken to be alike.
MEDIAN_TOKENS, SIGMA = 119.4, 0.480
LONGEST = 512  # LitGPT cuts there
ALPACA2K, HELD_OUT = 2000, 100  # examples; 77 are held out in some of its files
GENERATED = 100  # tokens, after each validation
LITGPT = "Lightning-AI/litgpt, config_hub/finetune/README.md"
MLPERF = "MLPerf Training v4.0 (SMC), v4.1, v5.0 (Lenovo): Llama-2-70B LoRA on GovReport"

# As in each model's config.json of the hub, for models that are not in the table.
OTHERS = {
    "tiny-llama": Shape(
        family="llama", layers=22, hidden=2048, heads=32, kv_heads=4, head_dim=64, mlp=5632,
        vocab=32000, context=2048,
    ),
    "llama-3-8b": Shape(
        family="llama", layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, mlp=14336,
        vocab=128256, context=8192,
    ),
    "falcon-7b": Shape(
        family="falcon", layers=32, hidden=4544, heads=71, kv_heads=1, head_dim=64, mlp=18176,
        vocab=65024, context=2048, gated=False, tied=True,
    ),
    "gemma-2-9b": Shape(
        family="gemma2", layers=42, hidden=3584, heads=16, kv_heads=8, head_dim=256, mlp=14336,
        vocab=256000, context=8192, tied=True,
    ),
    "phi-2": Shape(
        family="phi", layers=32, hidden=2560, heads=32, kv_heads=32, head_dim=80, mlp=10240,
        vocab=51200, context=2048, gated=False,
    ),
    "llama-2-70b": Shape(
        family="llama", layers=80, hidden=8192, heads=64, kv_heads=8, head_dim=128, mlp=28672,
        vocab=32000, context=4096,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """A public figure and ours. `fitted` rows have set a constant, and test nothing."""

    name: str
    unit: str
    published: float
    ours: float
    source: str
    fitted: bool = False

    @property
    def ratio(self) -> float:
        """Ours in multiples of the published figure."""
        return self.ours / self.published


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One of LitGPT's runs on one A10G, in bf16 on Alpaca2k. 0 minutes: out of memory."""

    model: str
    quantization: str
    rank: int
    targets: str
    micro: int  # examples of a micro-batch
    batch: int  # examples of a step
    epochs: int
    every: int  # steps between validations
    minutes: float = 0.0
    peak_gb: float = 0.0
    fitted: bool = False

    @property
    def name(self) -> str:
        """Its row."""
        return f"{self.model} {'QLoRA' if self.quantization == 'nf4' else 'LoRA'}"

    @property
    def shape(self) -> Shape:
        """The base model's."""
        return shape_of(self.model)


def _recipe(model: str, quantization: str, *numbers: float, targets: str = "all-linear") -> Recipe:
    rank, micro, batch, epochs, every, minutes, peak = numbers
    return Recipe(
        model=model, quantization=quantization, rank=int(rank), targets=targets, micro=int(micro),
        batch=int(batch), epochs=int(epochs), every=int(every), minutes=minutes, peak_gb=peak,
        fitted=model in ("llama-2-7b", "mistral-7b"),
    )  # fmt: skip


QV = "q_proj,v_proj"
# rank, micro-batch, batch, epochs, steps between validations; minutes, peak GB. The files of the
# same folder say the rest. Their adapters of the output layer are left out here.
RECIPES = (
    _recipe("llama-2-7b", "none", 32, 2, 8, 4, 100, 32.82, 19.77, targets=QV),
    _recipe("mistral-7b", "none", 32, 2, 8, 4, 100, 31.01, 20.66, targets=QV),
    _recipe("llama-2-7b", "nf4", 32, 2, 8, 4, 100, 45.67, 13.68, targets=QV),
    _recipe("mistral-7b", "nf4", 32, 2, 8, 4, 100, 44.75, 14.29, targets=QV),
    _recipe("gemma-2b", "none", 8, 2, 6, 2, 25, 9.41, 12.62),
    _recipe("gemma-2b", "nf4", 16, 2, 6, 2, 25, 12.91, 11.58),
    _recipe("gemma-7b", "none", 16, 1, 6, 2, 25, 0, 0),
    _recipe("gemma-7b", "nf4", 16, 1, 6, 2, 25, 43.58, 17.18),
    _recipe("gemma-2-9b", "none", 16, 1, 6, 2, 25, 0, 0),
    _recipe("gemma-2-9b", "nf4", 16, 1, 6, 2, 25, 50.01, 20.92),
    _recipe("llama-3-8b", "none", 32, 1, 8, 2, 100, 14.79, 19.73, targets=QV),
    _recipe("llama-3-8b", "nf4", 32, 2, 8, 2, 100, 22.24, 17.41, targets=QV),
    _recipe("falcon-7b", "none", 32, 1, 8, 4, 100, 24.84, 16.69, targets=QV),
    _recipe("falcon-7b", "nf4", 32, 1, 8, 4, 100, 50.85, 9.44, targets=QV),
    _recipe("tiny-llama", "none", 32, 8, 8, 3, 100, 8.09, 13.50),
    _recipe("tiny-llama", "nf4", 32, 8, 8, 3, 100, 8.70, 16.24),
    _recipe("phi-2", "none", 8, 4, 8, 1, 100, 3.78, 13.98),
    _recipe("phi-2", "nf4", 8, 4, 8, 1, 100, 4.51, 14.27),
)


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of eight GPUs in MLPerf; minutes are the middle of what its submitters had.

    `samples` are of 8,192 tokens, packed; a GPU has one of them in a step.
    """

    gpu: str
    minutes: float
    energy_mj: float = 0.0
    samples: int = 3072
    stack: str = ""

    @property
    def name(self) -> str:
        """Its row."""
        return f"Llama-2-70B LoRA, {SIZE} x {self.gpu}{self.stack}"


CONTEXT, SIZE = 8192, 8
# The same node with another stack: nearly four times as long (Juniper, v4.0).
PLAIN = Node(gpu="h100", minutes=116.1, samples=3900, stack=", DeepSpeed")
NODES = (
    Node(gpu="h100", minutes=28.4, energy_mj=12.09),
    Node(gpu="h200", minutes=23.8),
    Node(gpu="b200", minutes=11.9, energy_mj=6.39),
)

# What drew how many watts: of all that CodeCarbon counts, or of a node's share for each GPU.
POWERS = (
    (
        "TeenyTinyLlama-460m, full tuning",
        "a100-40",
        5.591 / 49516 * 3.6e6,
        "its model card (huggingface.co)",
        True,
    ),
    ("Mistral on SAMSum", "rtx4090", 0.03894 / 275.2 * 3.6e6, "model card of fahidmohammad", False),
    ("Phi-3.5-mini adapter", "rtx4090", 0.1948 / 2146.9 * 3.6e6, "model card of BTGFM", False),
    ("TinyLlama-1.1B LoRA", "a40", 0.0122 / 0.0415 * KILO, "model card of DIA-MVP", False),
    ("Malevich 1.3B, full tuning", "a100-40", 1.37 / (4 + 19 / 60) * KILO, "eco2AI README", False),
    ("Llama-2-70B LoRA, an eighth", "h100", 7160 / SIZE, MLPERF, False),
    ("Llama-2-70B LoRA, an eighth", "b200", 9580 / SIZE, MLPERF, False),
)

LEFT_OUT = (
    ("Munin-7B on an RTX A4000, 0.694 kWh", "that GPU is not in the table"),
    (
        "Llama-3.1-8B, SkoleGPT and SlimOrca, 7.837 kWh (ThatsGroes)",
        "neither GPU nor tokens: its epochs alone",
    ),
    ("Llama-3-8B, SkoleGPT, 1.121 kWh (ThatsGroes)", "neither GPU nor tokens"),
    ("Llama-3.1-70B QLoRA, 7.200 kWh (ThatsGroes)", "neither GPU nor tokens"),
    ("Gemma-2B LoRA on SQuAD, 1.131 kWh (PhotonTJ)", "no GPU"),
    ("Mistral on SAMSum, 0.03894 kWh; Phi-3.5-mini, 0.1948 kWh", "no tokens: power alone"),
    ("TinyLlama LoRA on an A40, 0.0122 kWh", "no tokens: power alone"),
    ("Malevich 1.3B, 1.37 kWh", "no tokens, full tuning, 40 or 80 GB: power alone"),
    ("Llama-2-70B LoRA on 64 and 512 GPUs, on Gaudi, MI300X, L40S", "network, or not in the table"),
    ("Llama-2-7B pretraining, 73.7 MWh", "full training, and its watts are the limit's"),
    ("LitGPT's LLaMA-2-7B on Alpaca, 5,000 iterations", "neither GPU nor lengths"),
    ("LitGPT on 4 x A10G", "as long as on one: no other runs"),
    ("LitGPT's other rows", "full tunings, repeats of these, or files not read"),
)


def shape_of(model: str) -> Shape:
    """The shape of a model, of the table or not."""
    return (SHAPES | OTHERS)[model]


def gpu_of(name: str) -> Gpu:
    """A row of the table of GPUs."""
    return next(gpu for gpu in GPUS if gpu.name == name)


def lengths(examples: int) -> list[int]:
    """As many token lengths of Alpaca: evenly spread quantiles, in an order of seed 0."""
    normal = statistics.NormalDist(math.log(MEDIAN_TOKENS), SIGMA)
    drawn = [math.exp(normal.inv_cdf((i + 0.5) / examples)) for i in range(examples)]
    tokens = [min(LONGEST, round(one)) for one in drawn]
    random.Random(0).shuffle(tokens)
    return tokens


def padded(tokens: Sequence[int], rows: int) -> Counts:
    """What passes over so many rows at once have in them, each padded to its longest."""
    parts = [tokens[i : i + rows] for i in range(0, len(tokens), rows)]
    processed = float(sum(max(part) * len(part) for part in parts))
    pairs = float(sum(len(part) * max(part) * (max(part) + 1) / 2 for part in parts))
    return Counts(
        useful=sum(tokens),
        processed=processed,
        pairs=pairs,
        labels=processed,  # prompts have labels too, and the output layer sees all places
        passes=len(parts),
    )


def litgpt_work(recipe: Recipe) -> tuple[Work, int]:
    """What such a run computes, and how many tokens it generates one after the other."""
    steps = recipe.epochs * (ALPACA2K - HELD_OUT) // recipe.batch
    train = padded(lengths(ALPACA2K - HELD_OUT), recipe.micro) * recipe.epochs
    validations = steps // recipe.every
    evals = padded(lengths(HELD_OUT), recipe.micro) * validations
    adapter = Adapter(rank=recipe.rank, targets=recipe.targets)
    work = work_of(recipe.shape, train + Counts(steps=steps), evals, adapter)
    return work, validations * GENERATED


def work_of(shape: Shape, train: Counts, evals: Counts, adapter: Adapter) -> Work:
    """The work of a training on one GPU."""
    return Work(
        layers=shape.layers,
        train_gflop=effort.training(shape, train, adapter) / GIGA,
        train_passes=train.passes,
        train_steps=train.steps,
        eval_gflop=effort.forward(shape, evals, adapter) / GIGA,
        eval_passes=evals.passes,
        quality_examples=0,
        useful_tokens=train.useful,
        processed_tokens=train.processed,
    )


def runtime(recipe: Recipe) -> Row:
    """LitGPT's minutes of training, validations and their generation included."""
    gpu, how = gpu_of("a10g"), ("bf16", recipe.quantization)
    work, generated = litgpt_work(recipe)
    pace = peaks.pace(gpu, *how, recipe.shape)
    seconds = pace.train_s(work) + pace.eval_s(work)
    seconds += generated * peaks.token_s(gpu, *how, recipe.shape)
    return Row(
        name=recipe.name,
        unit="min",
        published=recipe.minutes,
        ours=seconds / MINUTE,
        source=LITGPT,
        fitted=recipe.fitted,
    )


def needed_gib(recipe: Recipe, rows: int) -> float:
    """What `memory` says of so many rows of the longest example, with labels everywhere."""
    choices = Choices(
        precision="bf16",
        quantization=recipe.quantization,
        rank=recipe.rank,
        targets=recipe.targets,
        dropout=0.1,  # 0.05 or 0.1 there: the estimate asks only whether
        tokens=rows * LONGEST,
        label_share=1.0,
    )
    return estimate(recipe.shape, choices).total_gib


def memory(recipe: Recipe) -> Row:
    """LitGPT's peak of allocated memory."""
    return Row(
        name=recipe.name,
        unit="GiB",
        published=recipe.peak_gb * GIGA / GIB,
        ours=needed_gib(recipe, recipe.micro),
        source=LITGPT,
    )


def node_pace(node: Node) -> tuple[Pace, Work]:
    """The pace of one of the eight GPUs, and the eighth of the work that it has."""
    shape = shape_of("llama-2-70b")
    each = node.samples // SIZE
    train = padded([CONTEXT] * each, 1) + Counts(steps=each)
    adapter = Adapter(rank=16, targets="q_proj,k_proj,v_proj,o_proj")
    return peaks.pace(gpu_of(node.gpu), "bf16", "none", shape), work_of(
        shape, train, Counts(), adapter
    )


def node_time(node: Node) -> Row:
    """MLPerf's minutes of a node, without any setup."""
    pace, work = node_pace(node)
    ours = pace.train_s(work) / MINUTE
    return Row(name=node.name, unit="min", published=node.minutes, ours=ours, source=MLPERF)


def node_energy(node: Node) -> Row:
    """MLPerf's energy of a node, at the wall."""
    pace, work = node_pace(node)
    kwh = SIZE * pace.train_s(work) * pace.busy_w / MEGA * KWH_PER_MJ
    published = node.energy_mj * KWH_PER_MJ
    return Row(name=node.name, unit="kWh", published=published, ours=kwh, source=MLPERF)


def power(name: str, gpu: str, watts: float, source: str, fitted: bool) -> Row:
    """Mean watts while training; the shape is any, as watts do not depend on it."""
    ours = peaks.pace(gpu_of(gpu), "fp16", "none", shape_of("llama-2-7b")).busy_w
    return Row(
        name=f"{name}, {gpu}", unit="W", published=watts, ours=ours, source=source, fitted=fitted
    )


def epochs() -> Row:
    """Four epochs in multiples of one: the fixed parts alone can differ. Any large GPU will do."""
    pace = peaks.pace(gpu_of("a100-80"), "fp16", "none", shape_of("llama-3-8b"))
    fixed = pace.setup_s * pace.loading_w + pace.save_s * pace.loading_w
    one, four = (fixed + times * 14.95 * 3600 * pace.busy_w for times in (1, 4))
    return Row(
        name="Llama-3.1-8B LoRA of 15 h, four epochs to one",
        unit="x",
        published=31.356 / 7.837,
        ours=four / one,
        source="model cards of ThatsGroes",
    )


def projections(figure: Callable[[Node], Row], nodes: Iterable[Node]) -> list[Row]:
    """From each node to each other one: the ratio of a figure."""
    return [
        Row(
            name=f"{one.gpu} to {other.gpu}",
            unit="x",
            published=figure(other).published / figure(one).published,
            ours=figure(other).ours / figure(one).ours,
            source=MLPERF,
        )
        for one, other in permutations(nodes, 2)
    ]


FORECASTS = ("runtime, LitGPT on an A10G", "runtime, MLPerf", "energy, MLPerf")


def kinds() -> dict[str, list[Row]]:
    """All rows that have a number, by kind."""
    ran = [recipe for recipe in RECIPES if recipe.minutes]
    metered = [node for node in NODES if node.energy_mj]
    return {
        "runtime, LitGPT on an A10G": [runtime(recipe) for recipe in ran],
        "runtime, MLPerf": [node_time(node) for node in (*NODES, PLAIN)],
        "energy, MLPerf": [node_energy(node) for node in metered],
        "energy, epochs": [epochs()],
        "power": [power(*row) for row in POWERS],
        "memory, LitGPT on an A10G": [memory(recipe) for recipe in ran],
        "projected runtime, MLPerf": projections(node_time, NODES),
        "projected energy, MLPerf": projections(node_energy, metered),
    }


def errors(rows: Sequence[Row]) -> list[float]:
    """|ours / published - 1| of the rows that fitted nothing, in ascending order."""
    return sorted(abs(row.ratio - 1) for row in rows if not row.fitted)


def at_level(values: Sequence[float]) -> float:
    """The value, of ascending ones, that nine of ten do not exceed."""
    return values[math.ceil(LEVEL * len(values)) - 1]


def factor(rows: Sequence[Row]) -> float:
    """What nine of ten rows that fitted nothing are within, as a factor up or down."""
    return math.exp(at_level(sorted(abs(math.log(row.ratio)) for row in rows if not row.fitted)))


def fits(recipe: Recipe) -> dict[str, bool]:
    """Whether it ran, and whether `memory` lets it: as it was run, and one example at a time."""
    usable = fit.usable_gib(fit.as_device(gpu_of("a10g")))
    return {
        "published": bool(recipe.minutes),
        "ours": needed_gib(recipe, recipe.micro) <= usable,
        "one at a time": needed_gib(recipe, 1) <= usable,
    }


def page() -> str:
    """Everything as Markdown."""
    found = kinds()
    forecasts = [row for kind in found for row in found[kind] if kind in FORECASTS]
    lines = [
        "# Forecasts without a measurement, against public figures", "",
        "Ours are by the table of peaks (`peaks.py`) and the estimate of memory (`memory.py`): "
        "modelled, never measured, right to an order of magnitude. Rows with * have set a constant "
        "and are in no statistic.", "",
        *_summary(found),
        f"Nine of ten runtimes and energies are within a factor of {factor(forecasts):.2f}, up or "
        f"down; quotes of this kind assume {peaks.ASSUMED_FACTOR:g} until there are errors of "
        "their own.", "",
        *[line for kind, rows in found.items() for line in _kind(kind, rows)],
        "## Fits into an A10G", "", *_verdicts(),
        "## What is assumed", "", *(f"- {line}" for line in ASSUMED), "",
        "## Left out", "", *(f"- {row}: {why}" for row, why in LEFT_OUT), "",
    ]  # fmt: skip
    return "\n".join(lines)


ASSUMED = (
    "The fitted constants have seen no other row. Their form has: that nf4 costs a time for each "
    "pass, and no factor, was chosen with LitGPT's rows in view.",
    "Lengths of Alpaca2k: derived from the histogram of Alpaca in `tloen/alpaca-lora`, "
    f"`lengths.ipynb` (log-normal, median {MEDIAN_TOKENS:g}, sigma {SIGMA:g}, cut at {LONGEST}), "
    "in LLaMA's tokens for all models, in random order, padded to the longest of a micro-batch.",
    f"LitGPT: {HELD_OUT} of {ALPACA2K} examples held out, {GENERATED} tokens generated after "
    "each validation, adapters of the output layer left out.",
    "LitGPT keeps adapters, gradients and Adam's moments in bf16 and reports what tensors had "
    "allocated. Ours is for fp32 adapters under autocast, with CUDA's own memory and "
    "fragmentation, so it should be above; what is below is an underestimate.",
    "MLPerf: 3,072 samples of 8,192 tokens (DeepSpeed: about 3,900), in fp8 there and reckoned "
    "in bf16 here, no evaluations, no communication; the middle of the submitters' minutes. Its "
    "energy is that of the node at the wall, ours is that of GPUs, a CPU and memory for each.",
    "Epochs: the hours of one are the published ones, so the row says only that what does not grow "
    "with epochs is small.",
    "Powers: energy by time, everything included; GPUs without a variant are the smaller one. "
    "Two are of full tunings.",
)


def _summary(found: dict[str, list[Row]]) -> list[str]:
    rows = [
        [kind, str(len(wrong)), f"{statistics.median(wrong):.0%}", f"{at_level(wrong):.0%}"]
        for kind, wrong in ((kind, errors(rows)) for kind, rows in found.items())
    ]
    return table(["absolute error", "rows", "median", "90th percentile"], rows)


def _kind(kind: str, rows: Sequence[Row]) -> list[str]:
    cells = [
        [
            row.name + "*" * row.fitted,
            _figure(row.published, row.unit),
            _figure(row.ours, row.unit),
            f"{row.ratio:.2f}",
        ]
        for row in rows
    ]
    sources = "; ".join(dict.fromkeys(row.source for row in rows))
    if sources != rows[0].source:
        sources = "; ".join(f"{row.name}: {row.source}" for row in rows)
    head = ["", "published", "ours", "ours / published"]
    return [f"## {kind[0].upper()}{kind[1:]}", "", *table(head, cells), f"Source: {sources}.", ""]


def _figure(value: float, unit: str) -> str:
    return f"{value:.0f} {unit}" if value >= FIGURES else f"{value:.3g} {unit}"


def _verdicts() -> list[str]:
    said = [(recipe, fits(recipe)) for recipe in RECIPES]
    rows = [
        [recipe.name, *("fits" if fine else "does not" for fine in verdict.values())]
        for recipe, verdict in said
    ]
    agreed = [
        sum(verdict[how] == verdict["published"] for _, verdict in said)
        for how in ("ours", "one at a time")
    ]
    counts = (
        f"Agree: {agreed[0]} of {len(said)} at LitGPT's own micro-batch, {agreed[1]} with one "
        "example at a time, which is what a plan falls back to before it refuses."
    )
    return [*table(["", "published", "ours", "ours, one at a time"], rows), counts, ""]


def as_data() -> dict[str, object]:
    """What the page was made of, for JSON."""
    return {
        "rows": {
            kind: [asdict(row) | {"ratio": row.ratio} for row in rows]
            for kind, rows in kinds().items()
        },
        "fits": {recipe.name: fits(recipe) for recipe in RECIPES},
        "left_out": dict(LEFT_OUT),
    }


def main() -> None:
    """Compares, prints and records: under no machine's name, as none has a part in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--discard", action="store_true", help="print, and record nothing")
    asked = parser.parse_args()
    text = page()
    if not asked.discard:
        (RESULTS / "backtests.md").write_text(text)
        (RESULTS / "backtests.json").write_text(json.dumps(as_data(), indent=1) + "\n")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
