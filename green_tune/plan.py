"""The plan: what the device makes of a config, with a reason for each choice.

Pure functions over what was asked and what was found; nothing is loaded, and no library is
looked for: the caller says which are installed. What fits into the memory is `fit`'s to say.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from green_tune import fit, rules
from green_tune.config import TrainConfig, to_text
from green_tune.errors import ConfigError, DoesNotFit
from green_tune.hardware import GPUS, Device, Gpu
from green_tune.memory import Choices, estimate
from green_tune.shapes import SHAPES, Shape


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the hardware makes of a config, with a reason for each choice.

    The examples of one optimiser step are batch_size x accumulation_steps, as asked, however
    they are cut into micro-batches and shared by processes.
    """

    precision: str  # fp32, bf16 or fp16
    quantization: str  # none or nf4
    batching: str  # tree, flat or padded
    attention: str  # documents, padded or varlen; sdpa for padded batching
    micro_batch_tokens: int  # most of one forward pass
    examples: int  # of an optimiser step, in all processes together
    micro_batch_size: int  # rows of one forward pass; of padded batching alone
    checkpointing: bool
    compile: bool
    kernels: str  # torch or liger
    shards: int = 1  # processes that divide the base model's layers among them; 1: nobody does
    memory_gib: float  # estimated for one device; 0 where the model's shape is not known
    reasons: tuple[str, ...]

    def to_params(self) -> dict[str, str]:
        """The plan as MLflow params, its reasons included."""
        params = {f"plan.{each.name}": to_text(getattr(self, each.name)) for each in fields(self)}
        return params | {"plan.reasons": "; ".join(self.reasons)}


def make_plan(  # noqa: PLR0913 - each is one thing that was found out beforehand
    config: TrainConfig,
    device: Device,
    shape: Shape | None,
    *,
    processes: int = 1,
    divisions: Sequence[int] = fit.WHOLE,
    shared: float = 0.0,
    family: str = "",
    liger: bool = False,
    nf4: bool = False,
) -> Plan:
    """What the device makes of the config.

    `divisions` are the numbers of processes over which the base may be divided, the best first.
    `shared` is the part of the prompts' text that examples have in common, 0 to 1. `liger` and
    `nf4` say whether these libraries are installed. `family` counts where there is no shape.

    Raises:
        DoesNotFit: the memory of the device is too small.
        ConfigError: what was asked is not supported there, needs a library that is not installed,
            or cannot be shared equally by that many processes.
    """
    if shape and shape.context < config.max_seq_len:  # longer examples are cut
        config = replace(config, max_seq_len=shape.context)
    mine = rules.share(config.batch_size * config.accumulation_steps, processes)
    family = shape.family if shape else family
    precision, why_precision = rules.precision(config, device, family)
    batching, why_batching = rules.batching(config, shared)
    attention, why_attention = rules.attention(config, device, batching, precision)
    kernels, why_kernels = rules.kernels(config, device, liger)
    rules.check_quantization(config, device)
    at_most, why_not_more = _ceiling(config, device, shape, batching, mine)
    divisions = rules.divisions(config, divisions)
    choices = _choices(config, device, shape, family, at_most, divisions)
    if choices.quantization == "nf4" and not nf4:
        raise ConfigError(fit.needs_bitsandbytes(config, device, shape))
    rows = _rows(config, choices.tokens, mine)
    if batching == "padded" and not config.micro_batch_tokens:
        choices = replace(choices, tokens=rows * config.max_seq_len)
    memory = estimate(shape, choices).total_gib if shape else 0.0
    return Plan(
        precision=precision,
        quantization=choices.quantization,
        batching=batching,
        attention=attention,
        micro_batch_tokens=config.micro_batch_tokens or choices.tokens,
        examples=mine * processes,
        micro_batch_size=rows,
        checkpointing=choices.checkpointing,
        compile=config.compile,
        kernels="torch" if choices.shards > 1 else kernels,
        shards=choices.shards,
        memory_gib=round(memory, 2),
        reasons=(
            why_precision,
            _why_quantization(config, choices, known=shape is not None),
            why_batching,
            why_attention,
            _why_tokens(config, choices.tokens, at_most, why_not_more),
            _why_checkpointing(config, choices, known=shape is not None),
            "torch: the layers are divided" if choices.shards > 1 else why_kernels,
            "compile: asked for" if config.compile else "no compile: not asked for",
            _why_memory(device, memory),
            *_why_examples(mine, processes),
            *_why_shards(choices.shards, divisions),
        ),
    )


def fits(config: TrainConfig, shape: Shape, gpu: Gpu) -> Plan | None:
    """The plan on a GPU of the table, with bitsandbytes installed; None where there is none."""
    try:
        return make_plan(config, fit.as_device(gpu), shape, nf4=True)
    except ConfigError:
        return None


def table() -> str:
    """The plans of the study, each of its models on each of its GPUs, as docs/plan.md has them."""
    head = ("model", "gpu", "precision", "quantization", "attention", "micro-batch tokens",
            "checkpointing", "memory GiB")  # fmt: skip
    rows = [head, ("---",) * len(head), *_study()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _study() -> Iterator[tuple[str, ...]]:
    for model, shape in SHAPES.items():
        config = TrainConfig(model=model, batch_size=8, accumulation_steps=4, max_seq_len=512)
        for gpu in (gpu for gpu in GPUS if gpu.name in fit.REPORTED_GIB):
            plan = fits(config, shape, gpu)
            yield (model, gpu.name, *(_cells(plan) if plan else ("does not fit",) + ("",) * 5))


def _cells(plan: Plan) -> tuple[str, ...]:
    return (
        plan.precision,
        plan.quantization,
        plan.attention,
        str(plan.micro_batch_tokens),
        "yes" if plan.checkpointing else "no",
        f"{plan.memory_gib:.1f}",
    )


def _ceiling(
    config: TrainConfig, device: Device, shape: Shape | None, batching: str, mine: int
) -> tuple[int, str]:
    """The most tokens of a micro-batch that are of any use, and why not more."""
    longest = config.max_seq_len
    if device.gpu_type == "unknown":
        return longest, "this GPU is not in the table, its limits are not known"
    if batching == "padded":
        return math.gcd(config.batch_size, mine) * longest, "the rows that were asked for"
    usual = fit.GPU_TOKENS if shape else fit.UNKNOWN_TOKENS
    usual = max(longest, fit.CPU_TOKENS if device.kind == "cpu" else usual)
    if mine * longest <= usual:
        return mine * longest, "a whole step"
    return usual, "more would gain nothing"


def _choices(
    config: TrainConfig,
    device: Device,
    shape: Shape | None,
    family: str,
    at_most: int,
    divisions: Sequence[int],
) -> Choices:
    if shape is None:
        return replace(next(fit.preferred(config, device, family, divisions)), tokens=at_most)
    found = fit.find(config, device, shape, at_most, divisions)
    if found is None:
        raise DoesNotFit(fit.refusal(config, device, shape, divisions))
    return found


def _rows(config: TrainConfig, tokens: int, mine: int) -> int:
    """The most padded rows within that many tokens; a step is a whole number of such batches."""
    equal, most = math.gcd(config.batch_size, mine), max(1, tokens // config.max_seq_len)
    return next(rows for rows in range(min(equal, most), 0, -1) if equal % rows == 0)


def _why_quantization(config: TrainConfig, choices: Choices, *, known: bool) -> str:
    if config.quantization != "auto":
        return f"quantization {choices.quantization}: asked for"
    if choices.quantization == "nf4":
        return f"nf4: {choices.width} weights leave no room for {fit.least_tokens(config)} tokens"
    return f"not quantized: {'it fits' if known else 'nothing says that it does not fit'}"


def _why_tokens(config: TrainConfig, tokens: int, at_most: int, why_not_more: str) -> str:
    if config.micro_batch_tokens:
        return f"micro-batch {config.micro_batch_tokens} tokens: asked for"
    return f"micro-batch {tokens} tokens: {'as many as fit' if tokens < at_most else why_not_more}"


def _why_checkpointing(config: TrainConfig, choices: Choices, *, known: bool) -> str:
    name = "checkpointing" if choices.checkpointing else "no checkpointing"
    if config.gradient_checkpointing != "auto":
        return f"{name}: asked for"
    if choices.checkpointing:
        return f"{name}: it does not fit otherwise"
    return f"{name}: {'it fits' if known else 'nothing says that it does not fit'}"


def _why_memory(device: Device, memory_gib: float) -> str:
    if not memory_gib:
        return "memory: not estimated, the shape of this model is not known"
    usable = fit.usable_gib(device)
    return f"memory: {memory_gib:.1f} of {usable:.1f} usable GiB, estimated"


def _why_examples(mine: int, processes: int) -> Iterator[str]:
    if processes > 1:
        yield f"{mine} examples of each step in each of {processes} processes"


def _why_shards(shards: int, divisions: Sequence[int]) -> Iterator[str]:
    if shards > 1:
        why = "it does not fit otherwise" if 1 in divisions else "asked for"
        yield f"layers divided among {shards} processes, a part in each: {why}"
