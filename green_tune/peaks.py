"""A pace off the data sheet: peak rates of a GPU times a stated share of them.

The last layer of evidence, for devices on which nothing was measured: right to an order of
magnitude. It owns the shares, and deliberately knows no run, no store and no probe; all of those
know better. Benchmarks hold it against public figures (`benchmarks/backtests.py`).

Three constants are fitted to public figures. `EFFICIENCY`: the runtimes of LitGPT's LoRA runs of
LLaMA-2-7B and Mistral-7B on an A10G (Lightning-AI/litgpt, config_hub/finetune/README.md), by texts
of assumed lengths. `UNPACKING`: its QLoRA runs of the same two. `BUSY`: the mean power of one full
tuning on an A100 (the card of TeenyTinyLlama-460m). All others are assumed, and say so. Left out of
the fits, as a test of them: LitGPT's other runs, MLPerf's LoRA runs, all other powers. GPUs whose
power limit holds them far below their peaks (L4, T4) are the least certain.
"""

from green_tune.effort import GIGA
from green_tune.hardware import Device, Gpu
from green_tune.memory import GIB, NF4_BYTES
from green_tune.pace import Pace
from green_tune.shapes import Shape

TERA_PER_GIGA = 1e3
BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0}  # of a weight
FILE_BYTES = 2.0  # of a weight in the files of the hub, whatever it is loaded as (assumed)

# Of the peak rate, while matrices are multiplied: fitted, see above. fp32 runs on a GPU's plain
# units, not as tf32, and is taken to reach the same share (assumed).
EFFICIENCY = 0.345
# Of the bandwidth, while nf4 weights are unpacked, each time before they are used: fitted, see
# above. So nf4 costs a time for each pass, 1.37 to 1.44 times as much in those runs, and less where
# a pass has more tokens in it: 1.08 times for TinyLlama at eight examples.
UNPACKING = 0.316
UNPACKED_BYTES = NF4_BYTES + BYTES["bf16"]  # read and written, for each weight

# Kernels that one layer starts forwards, adapters with it, and how long each start takes: assumed,
# by counting the operations of a LLaMA layer with adapters on all seven matrices. Backwards: twice.
LAUNCHES = 60
LAUNCH_S = 6e-6
TRAIN_PASSES = 3  # forward, and back through activations and adapters, in launches
READS = 2  # of the weights in a training pass: forward and back
STEP_S = 3e-4  # of an update, for each layer: clipping and Adam over its adapters; assumed

# Generation reads all weights for each new token, for all rows at once. Both assumed: the answers'
# length lies between those of labels and summaries, and a validation is seldom larger.
ANSWER_TOKENS = 32
ANSWERS_AT_ONCE = 16

IMPORTS_S = 15.0  # libraries, meter and the store, before a weight is read; assumed
READ_GIB_PER_S = 1.0  # of weights, from a local disk to the device; assumed. No download
SAVE_S = 3.0  # an adapter, to disk and to the store; assumed

# Of a GPU's power limit: with weights loaded and nothing to do (assumed; 10 to 15 % are usual), and
# what training adds to that. Together as in the one card that states all of it (see above): 0.83.
IDLE = 0.12
BUSY = 0.71
# CodeCarbon's figure for a CPU without a counter: half of 85 W. Memory: four modules of 5 W.
HOST_CPU_W = 42.5
HOST_RAM_W = 20.0

# A CPU. One thread alone of a Xeon trained a small Llama at 56 to 70 GFLOP/s (measured, see
# `benchmarks/results/training-*`); less is assumed, since threads share cores and memory.
CPU_GFLOPS_PER_THREAD = 40.0
CPU_LAUNCH_S = 1.5e-5  # an operation's start, and what little there is in it; assumed
CPU_STEP_S = 1e-3  # of an update, for each layer; assumed
CPU_GB_PER_S = 10.0  # of memory; assumed
CPU_W_PER_THREAD = 4.0  # CodeCarbon's figure for a CPU that it does not know
CPU_RAM_W = 10.0  # CodeCarbon's least

# Between 1/ASSUMED_FACTOR and ASSUMED_FACTOR times what this layer says, where there are no errors
# of quotes to go by. Nine of ten public runtimes and energies are within 1.9, and conformal's rank
# gives 2.1; it is more here, since those are of two sources, on three kinds of GPUs.
ASSUMED_FACTOR = 2.5


def pace(gpu: Gpu, precision: str, quantization: str, shape: Shape) -> Pace:
    """The pace of LoRA training on one GPU of the table: right to an order of magnitude.

    `precision` is fp32, bf16 or fp16, and bf16 counts as fp16 where the GPU lacks it;
    `quantization` is none or nf4. Nothing is downloaded in it, and the host is not the GPU's.

    Raises:
        ValueError: one of them is another.
    """
    if precision not in BYTES or quantization not in ("none", "nf4"):
        raise ValueError(f"precision={precision}, quantization={quantization} is not in the table")
    seconds = 1 / (EFFICIENCY * peak_tflops(gpu, precision) * TERA_PER_GIGA)
    touch = _touch_s(gpu, precision, quantization, shape)
    launches = LAUNCHES * LAUNCH_S
    return Pace(
        train_s_per_gflop=seconds,
        train_s_per_layer_pass=TRAIN_PASSES * launches + READS * touch,
        train_s_per_layer_step=STEP_S,
        eval_s_per_gflop=seconds,
        eval_s_per_layer_pass=launches + touch,
        quality_s_per_example=ANSWER_TOKENS
        * token_s(gpu, precision, quantization, shape)
        / ANSWERS_AT_ONCE,
        setup_s=_setup_s(shape),
        save_s=SAVE_S,
        busy_w=HOST_CPU_W + HOST_RAM_W + (IDLE + BUSY) * gpu.power_limit_w,
        loading_w=HOST_CPU_W + HOST_RAM_W + IDLE * gpu.power_limit_w,
    )


def pace_of_cpu(device: Device, shape: Shape, threads: int) -> Pace:
    """The pace of training in fp32 on a CPU of so many threads: an order of magnitude, assumed.

    Raises:
        ValueError: the device is no CPU, or has no thread.
    """
    if device.kind != "cpu" or threads < 1:
        raise ValueError(f"{device} with {threads} threads is no CPU")
    seconds, launches = 1 / (CPU_GFLOPS_PER_THREAD * threads), LAUNCHES * CPU_LAUNCH_S
    token = shape.layers * launches + shape.parameters * BYTES["fp32"] / (CPU_GB_PER_S * GIGA)
    watts = CPU_W_PER_THREAD * threads + CPU_RAM_W
    return Pace(
        train_s_per_gflop=seconds,
        train_s_per_layer_pass=TRAIN_PASSES * launches,
        train_s_per_layer_step=CPU_STEP_S,
        eval_s_per_gflop=seconds,
        eval_s_per_layer_pass=launches,
        quality_s_per_example=ANSWER_TOKENS * token / ANSWERS_AT_ONCE,
        setup_s=_setup_s(shape),
        save_s=SAVE_S,
        busy_w=watts,
        loading_w=watts,
    )


def peak_tflops(gpu: Gpu, precision: str) -> float:
    """The dense peak rate that a precision has on a GPU, in TFLOP/s."""
    if precision == "fp32":
        return gpu.fp32_tflops
    return (gpu.bf16_tflops if precision == "bf16" else None) or gpu.fp16_tflops


def token_s(gpu: Gpu, precision: str, quantization: str, shape: Shape) -> float:
    """Seconds for the next token of all rows that are generated together."""
    touch = _touch_s(gpu, precision, quantization, shape)
    head = shape.vocab * shape.hidden * BYTES[precision] / (gpu.bandwidth_gb_per_s * GIGA)
    return shape.layers * (LAUNCHES * LAUNCH_S + touch) + head


def _touch_s(gpu: Gpu, precision: str, quantization: str, shape: Shape) -> float:
    """Seconds to have a layer's weights read once, and unpacked where they are."""
    weights, bandwidth = shape.linear_parameters / shape.layers, gpu.bandwidth_gb_per_s * GIGA
    unpacked = UNPACKED_BYTES / UNPACKING if quantization == "nf4" else 0.0
    return weights * (BYTES[precision] + unpacked) / bandwidth


def _setup_s(shape: Shape) -> float:
    return IMPORTS_S + shape.parameters * FILE_BYTES / GIB / READ_GIB_PER_S
