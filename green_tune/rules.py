"""The rules that need no arithmetic: what a device supports, and what is best on it.

Each function gives a choice and its reason, or refuses what was asked with what to use instead.
"""

from collections.abc import Iterator, Sequence

from green_tune.config import TrainConfig
from green_tune.errors import ConfigError
from green_tune.hardware import Device

NATIVE = (8, 0)  # the first compute capability with bf16 in hardware, and with FlashAttention 2
SHARED = 0.2  # of the prompts' text: where examples have as much in common, a tree is used


def share(examples: int, processes: int) -> int:
    """The examples of a step in each process."""
    if examples % processes:
        raise ConfigError(
            f"batch_size x accumulation_steps = {examples} examples of a step cannot be shared "
            f"equally by {processes} processes; take a multiple of {processes}"
        )
    return examples // processes


def precision(config: TrainConfig, device: Device, family: str) -> tuple[str, str]:
    """What the device computes natively, or what was asked for."""
    native_bf16 = device.kind == "cuda" and device.capability >= NATIVE
    asked = config.precision
    if asked == "bf16" and device.kind == "cuda" and not native_bf16:
        raise ConfigError(f"precision=bf16 would be emulated on {device.name}; use fp16 or auto")
    if asked == "fp16" and device.kind == "cpu":
        raise ConfigError("precision=fp16 needs a GPU; use fp32 or auto")
    if asked != "auto":
        return asked, _guarded(f"{asked}: asked for", family)
    if device.kind == "cpu":
        return "fp32", "fp32: a CPU"
    if device.gpu is None:
        return "fp32", "fp32: the GPU is not in the table"
    if native_bf16:
        return "bf16", "bf16: native"
    return "fp16", _guarded("fp16: bf16 would be emulated", family)


def _guarded(reason: str, family: str) -> str:
    if not (reason.startswith("fp16") and family.startswith("gemma")):
        return reason
    return f"{reason}; Gemma is guarded: refused unless its activations are finite"


def batching(config: TrainConfig, shared: float) -> tuple[str, str]:
    """Without padding, and in a tree where prompts have enough text in common."""
    if config.batching != "auto":
        return config.batching, f"{config.batching}: asked for"
    choice = "tree" if shared >= SHARED else "flat"
    return choice, f"{choice}: {shared:.0%} of the prompt text is shared"


def attention(
    config: TrainConfig, device: Device, batching: str, precision: str
) -> tuple[str, str]:
    """How documents that share a batch are kept apart, by what the device has."""
    asked = config.attention
    if batching == "padded":
        if asked != "auto":
            raise ConfigError(
                f"attention={asked} is for batches without padding; with batching=padded use auto"
            )
        return "sdpa", "sdpa: padded rows"
    hindrance = _no_varlen(device, precision)
    if asked == "varlen" and hindrance:
        use = "documents" if device.kind == "cpu" else "padded"
        raise ConfigError(f"attention=varlen: {hindrance}; use {use} or auto")
    if asked != "auto":
        return asked, f"{asked}: asked for"
    if device.kind == "cpu":
        return "documents", "documents: a CPU"
    if device.gpu is None:
        return "padded", "padded: the GPU is not in the table"
    return ("padded", f"padded: {hindrance}") if hindrance else ("varlen", "varlen: FlashAttention")


def _no_varlen(device: Device, precision: str) -> str:
    if device.kind == "cpu":
        return "FlashAttention needs a GPU"
    if device.capability < NATIVE:
        return f"{device.name} has no FlashAttention 2, which begins at compute capability 8.0"
    return "FlashAttention computes in 16 bits, not in fp32" if precision == "fp32" else ""


def kernels(config: TrainConfig, device: Device, liger: bool) -> tuple[str, str]:
    """Fused layers where there is a GPU and the library for them."""
    asked = config.kernels
    if asked == "liger" and device.kind == "cpu":
        raise ConfigError("kernels=liger needs a GPU; use torch or auto")
    if asked == "liger" and not liger:
        raise ConfigError("kernels=liger needs a library: pip install green-tune[liger]")
    if asked != "auto":
        return asked, f"{asked}: asked for"
    if device.gpu is None:
        return "torch", "torch: a CPU" if device.kind == "cpu" else "torch: runs everywhere"
    return ("liger", "liger: installed") if liger else ("torch", "torch: liger is not installed")


def divisions(config: TrainConfig, found: Sequence[int]) -> tuple[int, ...]:
    """Over how many processes a base model may be divided, of what the launcher has found.

    Raises:
        ConfigError: dividing was asked for, together with what it cannot be done with.
    """
    hindrance = next((name for name, asked in _undivided(config) if asked), "")
    if not hindrance or tuple(found) == (1,):
        return tuple(found)
    if 1 not in found:
        raise ConfigError(
            f"{hindrance} cannot be trained with a base model that is divided among processes: "
            "leave it out, or start without --use_fsdp"
        )
    return (1,)


def _undivided(config: TrainConfig) -> Iterator[tuple[str, bool]]:
    """What needs the whole of each weight: never tried, or known to fail, with parts of them."""
    yield "quantization=nf4", config.quantization == "nf4"
    yield "use_dora=true", config.use_dora  # the norm of each whole matrix
    yield "compile=true", config.compile
    yield "kernels=liger", config.kernels == "liger"


def check_quantization(config: TrainConfig, device: Device) -> None:
    """Raises ConfigError for 4-bit weights on a CPU: never tried there."""
    if config.quantization == "nf4" and device.kind == "cpu":
        raise ConfigError("quantization=nf4 needs a GPU; use none or auto")
