"""Whether a training fits into a device's memory, and the least that it gives up to do so.

In order of preference: 16-bit weights without checkpointing, in micro-batches as small as one
example; the same divided among processes, where there are several; 4-bit weights; checkpointing;
both. What a user pinned stays. Sizes come from `memory`; `plan` gives the reasons.

`divisions` are the numbers of processes over which the base model may be divided, 1 for whole in
each, the best first; `rules.divisions` says which there are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from green_tune import rules
from green_tune.config import TrainConfig, to_text
from green_tune.errors import ConfigError
from green_tune.hardware import GPUS, Device, Gpu
from green_tune.memory import Choices, Estimate, estimate, most_tokens
from green_tune.shapes import Shape

USABLE = {"cuda": 0.95, "cpu": 0.8}  # of a device's memory: others live there too
CPU_TOKENS = 2048  # of a micro-batch: 1024 to 4096 took alike CPU seconds (hidden width 256)
GPU_TOKENS = 16384  # of a micro-batch: a GPU is busy long before; chosen, not measured
UNKNOWN_TOKENS = 4096  # of a micro-batch on a GPU, where the model's shape is not known
SHORTEST = 64  # tokens: no shorter max_seq_len is proposed
NAMED = 4  # GPUs in a refusal, the smallest first

# GiB that drivers report: less than the nominal size where error correction takes a part of it
# (nvidia-smi's figures in modal-labs/modal-client#2797). For all others the least of those shares.
REPORTED_GIB = {"t4": 15.0, "l4": 22.5, "a100-40": 40.0, "a100-80": 80.0}
REPORTED = 0.93

WHOLE = (1,)  # the divisions of a process alone


def usable_gib(device: Device) -> float:
    """The memory of a device that a training may take."""
    return USABLE[device.kind] * device.memory_gib


def as_device(gpu: Gpu) -> Device:
    """A GPU of the table as it would be found in a machine."""
    return Device(
        kind="cuda",
        name=gpu.name,
        memory_gib=REPORTED_GIB.get(gpu.name, REPORTED * gpu.memory_gib),
        capability=gpu.capability,
        gpu=gpu,
    )


def preferred(
    config: TrainConfig, device: Device, family: str, divisions: Sequence[int] = WHOLE
) -> Iterator[Choices]:
    """What may be tried, in order of preference; a user's choices are in all of it."""
    precision, _ = rules.precision(config, device, family)
    held = list(_weights(config, device, divisions))
    for checkpointing, (quantization, shards) in product(_checkpointing(config), held):
        yield adapted(
            config,
            device,
            precision=precision,
            quantization=quantization,
            checkpointing=checkpointing,
            shards=shards,
        )


def adapted(config: TrainConfig, device: Device, **chosen: Any) -> Choices:
    """What was chosen, with the adapter that the config asks for."""
    return Choices(
        rank=config.lora_rank,
        targets=config.lora_targets,
        layers=config.lora_layers,
        dora=config.use_dora,
        dropout=config.lora_dropout,
        on_gpu=device.kind == "cuda",
        **chosen,
    )


def find(
    config: TrainConfig,
    device: Device,
    shape: Shape,
    at_most: int = 0,
    divisions: Sequence[int] = WHOLE,
) -> Choices | None:
    """The first choices that fit, with as many tokens as fit up to `at_most`; None if none do.

    A micro-batch holds at the least the longest example, or the tokens that were asked for.
    """
    memory, least = usable_gib(device), least_tokens(config)
    most = least if config.micro_batch_tokens else max(at_most, least)
    for choices in preferred(config, device, shape.family, divisions):
        tokens = most_tokens(shape, choices, memory, most)
        if tokens >= least:
            return replace(choices, tokens=tokens)
    return None


def smallest(
    config: TrainConfig, device: Device, shape: Shape, divisions: Sequence[int] = WHOLE
) -> Estimate:
    """What the training needs at the least, with everything given up that may be."""
    tokens = least_tokens(config)
    every = [
        estimate(shape, replace(choices, tokens=tokens))
        for choices in preferred(config, device, shape.family, divisions)
    ]
    return min(every, key=lambda each: each.total_gib)


def least_tokens(config: TrainConfig) -> int:
    """The tokens that a micro-batch has to hold: the longest example, or what was asked for."""
    return max(config.max_seq_len, config.micro_batch_tokens)


def refusal(
    config: TrainConfig, device: Device, shape: Shape, divisions: Sequence[int] = WHOLE
) -> str:
    """Why a training is refused, and which single changes and which GPUs would let it run."""
    need = smallest(config, device, shape, divisions)
    remedies = [
        ", ".join(_changes_that_fit(config, device, shape, divisions)),
        _gpus_that_fit(config, shape, divisions),
    ]
    most = max(divisions)
    so = f", its layers divided among {most} processes" if most > 1 else ""
    return (
        f"{config.model} does not fit into {device}{so}: needs {need.total_gib:.1f} GiB at the "
        f"least ({need}), {usable_gib(device):.1f} are usable; "
        f"what would fit: {', or '.join(filter(None, remedies)) or 'nothing in the table'}"
    )


def needs_bitsandbytes(config: TrainConfig, device: Device, shape: Shape | None) -> str:
    """Why a training is refused where bitsandbytes is missing, and what runs without it."""
    line = f"{config.model} in nf4 on {device} needs bitsandbytes: pip install green-tune[quant]"
    other = shape and find(replace(config, quantization="none"), device, shape)
    if not other:
        return line
    return f"{line}; quantization=none fits{' with checkpointing' if other.checkpointing else ''}"


def _changes_that_fit(
    config: TrainConfig, device: Device, shape: Shape, divisions: Sequence[int]
) -> list[str]:
    fitting: dict[str, str] = {}
    for change in _changes(config, device, shape):
        if find(replace(config, **change), device, shape, divisions=divisions):
            for name, value in change.items():
                fitting.setdefault(name, f"{name}={to_text(value)}")
    return list(fitting.values())


def _gpus_that_fit(config: TrainConfig, shape: Shape, divisions: Sequence[int]) -> str:
    fitting = [gpu for gpu in GPUS if _fits_on(gpu, config, shape, divisions)]
    names = [gpu.name for gpu in sorted(fitting, key=lambda gpu: gpu.memory_gib)]
    shown = ", ".join([*names[:NAMED], *["..."][: len(names) > NAMED]])
    return f"another GPU ({shown})" if names else ""


def _fits_on(gpu: Gpu, config: TrainConfig, shape: Shape, divisions: Sequence[int]) -> bool:
    try:
        return find(config, as_device(gpu), shape, divisions=divisions) is not None
    except ConfigError:  # the asked precision is not there
        return False


def _changes(config: TrainConfig, device: Device, shape: Shape) -> Iterator[dict[str, Any]]:
    """Single changes of a config that take less memory, the mildest of each kind first."""
    if config.micro_batch_tokens > config.max_seq_len:
        yield {"micro_batch_tokens": 0}
    if config.precision == "fp32":
        yield {"precision": "auto"}
    if config.quantization == "none" and device.kind == "cuda":
        yield {"quantization": "nf4"}
    if config.gradient_checkpointing == "false":
        yield {"gradient_checkpointing": "true"}
    if config.lora_dropout:
        yield {"lora_dropout": 0.0}
    if config.use_dora:
        yield {"use_dora": False}
    yield from ({"max_seq_len": tokens} for tokens in _halves(config.max_seq_len, SHORTEST))
    yield from ({"lora_layers": n} for n in _halves(config.lora_layers or shape.layers, 1))
    yield from ({"lora_rank": rank} for rank in _halves(config.lora_rank, 1))


def _checkpointing(config: TrainConfig) -> tuple[bool, ...]:
    asked = config.gradient_checkpointing
    return (False, True) if asked == "auto" else (asked == "true",)


def _weights(
    config: TrainConfig, device: Device, divisions: Sequence[int]
) -> Iterator[tuple[str, int]]:
    """Bits of the weights, and the processes among which they are divided; nf4 never is."""
    asked = config.quantization
    if asked != "nf4":
        yield from (("none", shards) for shards in divisions)
    if asked == "nf4" or (asked == "auto" and device.kind == "cuda" and 1 in divisions):
        yield ("nf4", 1)


def _halves(number: int, least: int) -> Iterator[int]:
    while (number := number // 2) >= least:
        yield number
