"""What was asked for: one fine-tuning run, and one sweep, as frozen values.

Each field is at once a keyword, a command-line option, an MLproject parameter and an MLflow
param; its help text and bounds stand beside it, once. This module knows types and bounds. It
does not know which models, tasks, GPUs or countries exist: `job` joins the two.
"""

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from math import isfinite
from typing import Any, Self, cast

from green_tune.errors import ConfigError

Value = str | int | float | bool


def option(
    default: Value,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A config field with its help text and the values it accepts (bounds included)."""
    meta = {"help": help, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=meta)


@dataclass(frozen=True, kw_only=True)
class Options:
    """A set of options that can be read from text, checked, and written back."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            check(spec, getattr(self, spec.name))

    @classmethod
    def parse(cls, asked: Mapping[str, str]) -> Self:
        """The options named in `asked`, from text; those that are not keep their defaults.

        Raises:
            ConfigError: a name is unknown, or a value is of the wrong type or out of range.
        """
        specs = {spec.name: spec for spec in fields(cls)}
        if unknown := sorted(set(asked) - set(specs)):
            raise ConfigError(f"unknown parameter {unknown[0]}; known: {', '.join(specs)}")
        return cls(**{name: read(specs[name], text) for name, text in asked.items()})

    def to_params(self) -> dict[str, str]:
        """Every option as text, as MLflow stores it; `parse` reads it back equal."""
        return {spec.name: to_text(getattr(self, spec.name)) for spec in fields(self)}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Options):
    """One LoRA fine-tuning run."""

    model: str = option("tiny", "Base model: a short name, a hub id (owner/name), or a folder.")
    revision: str = option("main", "Branch, tag or commit of a hub model.")
    task: str = option("sentiment", "qa, summarization or sentiment.")
    data: str = option("sample", "sample (built in), hub, or a folder of train|validation.jsonl.")
    gpu: str = option("auto", "auto, cpu, or a GPU of the table, such as t4, l4, a100.")
    country: str = option(
        "world",
        "Where the power is made: ISO code (FRA), g CO2e per kWh (56), or world (assumed).",
    )
    pue: float = option(
        1.0,
        "Power usage effectiveness of the data centre; 1 counts the machine alone.",
        low=1.0,
        high=10.0,
    )
    epochs: int = option(1, "Passes over the training data.", low=1, high=1000)
    batch_size: int = option(8, "Examples of one forward pass.", low=1, high=4096)
    accumulation_steps: int = option(1, "Forward passes of one optimiser step.", low=1, high=4096)
    learning_rate: float = option(2e-4, "Peak learning rate of AdamW.", low=1e-9, high=10.0)
    warmup_steps: int = option(5, "Optimiser steps up to the peak.", low=0, high=1_000_000)
    lr_scheduler: str = option(
        "cosine", "Course after the warm-up.", choices=("cosine", "linear", "constant")
    )
    weight_decay: float = option(0.0, "AdamW's weight decay.", low=0.0, high=10.0)
    max_grad_norm: float = option(1.0, "Gradient clipping.", low=1e-6, high=1e6)
    lora_rank: int = option(16, "Rank of the adapter.", low=1, high=4096)
    lora_alpha: int = option(
        32, "Scaling: updates are multiplied by alpha / rank.", low=1, high=1_000_000
    )
    lora_dropout: float = option(
        0.0, "Dropout before the adapter; costs time and memory.", low=0.0, high=0.99
    )
    lora_targets: str = option(
        "all-linear", "Adapted: all-linear, attention, mlp, or names such as q_proj,v_proj."
    )
    lora_layers: int = option(
        0, "Adapt only the top n layers, and go back no further; 0 for all.", low=0, high=10_000
    )
    use_rslora: bool = option(False, "Scale by alpha / sqrt(rank) instead (rank-stabilised).")
    use_dora: bool = option(False, "Weight-decomposed LoRA; a fifth slower.")
    loraplus_ratio: float = option(
        1.0, "LoRA+: learning rate of B over that of A; 1 for plain LoRA.", low=1.0, high=1000.0
    )
    max_seq_len: int = option(
        512, "Tokens of an example; what is longer is cut.", low=16, high=1_000_000
    )
    max_train_examples: int = option(0, "Use only the first n; 0 for all.", low=0)
    max_eval_examples: int = option(256, "Validate on the first n; 0 for all.", low=0)
    evals: int = option(
        4, "Validations spread over the run, besides the one before it.", low=1, high=1000
    )
    precision: str = option(
        "auto", "Arithmetic of the training.", choices=("auto", "fp32", "bf16", "fp16")
    )
    quantization: str = option(
        "auto",
        "Base weights in 4 bits: auto where it does not fit otherwise.",
        choices=("auto", "none", "nf4"),
    )
    batching: str = option(
        "auto",
        "No padding (flat), prompts computed once where shared (tree), or padded rows.",
        choices=("auto", "tree", "flat", "padded"),
    )
    attention: str = option(
        "auto",
        "How flat batches attend: by the device.",
        choices=("auto", "documents", "padded", "varlen"),
    )
    micro_batch_tokens: int = option(
        0, "Most tokens of one forward pass; 0: as many as fit.", low=0, high=10_000_000
    )
    gradient_checkpointing: str = option(
        "auto",
        "Recompute activations: a fifth slower, much less memory.",
        choices=("auto", "true", "false"),
    )
    kernels: str = option(
        "auto", "Fused layers: liger where it is installed.", choices=("auto", "torch", "liger")
    )
    compile: bool = option(False, "Compile the layers; pays after about an hour.")
    min_gain_per_g: float = option(
        0.0,
        "Stop when a gram CO2e lowers the validation loss by less than this; 0: never.",
        low=0.0,
        high=1e9,
    )
    quality_examples: int = option(
        64, "Task metrics on the first n, before and after; 0 for none.", low=0
    )
    checkpoint_minutes: float = option(
        10.0, "Time between checkpoints to resume from; 0 for none.", low=0.0, high=1e6
    )
    resume: str = option(
        "auto", "Go on where the same command was stopped: auto, never, or a run id."
    )
    seed: int = option(
        0, "Seeds the adapter, the order of the data, and a sweep.", low=0, high=2**32 - 1
    )


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Options):
    """What a sweep adds to the run that it varies."""

    trials: int = option(10, "Trials of the study, those of a resumed one included.", low=1)
    study: str = option("auto", "Name of the study; an existing name resumes it.")
    sampler: str = option(
        "green",
        "Who proposes trials: green knows their price.",
        choices=("green", "gp", "tpe", "nsga2", "random", "grid"),
    )
    early_stop: bool = option(True, "End trials that are dominated whatever they still gain.")
    emissions_budget_kg: float = option(
        0.0, "Most kg CO2e of the whole study; 0: no limit.", low=0.0, high=1e9
    )
    energy_budget_kwh: float = option(
        0.0, "Most kWh of the whole study; 0: no limit.", low=0.0, high=1e9
    )
    timeout_h: float = option(0.0, "Most hours of this command; 0: no limit.", low=0.0, high=1e6)
    warm_start: str = option(
        "auto", "First trials from earlier studies' fronts: auto, never, or a study's name."
    )
    reuse: str = option(
        "auto", "Take over runs of the very same config: auto, or never.", choices=("auto", "never")
    )
    repeats: int = option(
        1, "Seeds on which the best trials are run in the end; 1: no more.", low=1, high=100
    )


@dataclass(frozen=True, kw_only=True)
class GridConfig(SweepConfig, TrainConfig):
    """The options of a grid: those of a run and of a sweep, three of them lists."""

    model: str = option("tiny", "Base models, with commas between: short names, hub ids, folders.")
    task: str = option(
        "sentiment,qa,summarization", "Tasks, with commas between: qa, summarization, sentiment."
    )
    data: str = option(
        "sample", "sample, hub, or a folder: of files, or of a folder for each task."
    )
    seed: str = option("0,1,2", "Seeds, with commas between.")  # type: ignore[assignment]
    trials: int = option(1, "1: each cell is one run; more: a sweep of so many trials.", low=1)
    study: str = option("auto", "Name of the grid; an existing name resumes it.")
    warm_start: str = option(
        "never", "First trials of each sweep from earlier studies' fronts: auto, or a study's name."
    )


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(Options):
    """What the machine and its services are looked at for."""

    gpu: str = option("auto", "The GPU that commands will ask for: auto, cpu, or one of the table.")
    country: str = option("world", "The country= that commands will be given.")
    json: bool = option(False, "Print one JSON object instead of a screen.")


def read(spec: "Field[Any]", text: str) -> Value:
    """The value of one option from what a user typed."""
    readers: dict[Any, Callable[[str, str], Value]] = {
        int: _whole_number,
        float: _number,
        bool: _truth,
        str: _text,
    }
    return readers[spec.type](text.strip(), spec.name)


def check(spec: "Field[Any]", value: Value) -> None:
    """Raises ConfigError when a value is outside of what its option accepts."""
    low, high, choices = (spec.metadata[key] for key in ("low", "high", "choices"))
    if choices and value not in choices:
        raise ConfigError(f"{spec.name}={value} is not one of {', '.join(choices)}")
    if spec.type is str and not value:
        raise ConfigError(f"{spec.name} is empty; leave it out for its default {spec.default}")
    if low is not None and not cast(float, value) >= low:  # so that nan is refused too
        raise ConfigError(f"{spec.name}={to_text(value)} is too small; at least {to_text(low)}")
    if high is not None and cast(float, value) > high:
        raise ConfigError(f"{spec.name}={to_text(value)} is too large; at most {to_text(high)}")


def to_text(value: Value) -> str:
    """A value as it is typed and stored: `true`, `8`, `0.0002`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _text(text: str, name: str) -> str:
    return text


def _whole_number(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name}={text} is not a whole number") from None


def _number(text: str, name: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ConfigError(f"{name}={text} is not a number") from None
    if not isfinite(number):
        raise ConfigError(f"{name}={text} is not a finite number")
    return number


def _truth(text: str, name: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ConfigError(f"{name}={text} is neither true nor false")
    return text.lower() == "true"
