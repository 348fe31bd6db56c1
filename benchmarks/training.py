"""What training an example takes with green-tune, against what it takes with others, in one run.

    python -m benchmarks.training --data FOLDER                      # a CPU, about 15 minutes
    python -m benchmarks.training --data FOLDER --tasks sentiment --examples 64 --repeats 1
    python -m benchmarks.training --data FOLDER --device cuda        # the studied models' shapes

FOLDER holds qa/, summarization/ and sentiment/, each with train.jsonl and validation.jsonl.

All contenders get the same base weights, adapter, token ids, learning rate, schedule and examples
of a step, and are validated by the same function. Only the training loop is timed: of green-tune
`fit` with its self-test and without its validations, of the others `train()`. Packing lies
before it, and is not timed. Contenders take turns, each measurement in a fork of this process,
which has imported everything and computed nothing.
"""

import argparse
import operator
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

# As the commands do, before torch is imported; see entrypoints/options.py.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pynvml
import torch
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from benchmarks.record import facts, say, write
from benchmarks.training_base import build, chosen, hush, models, vocab
from benchmarks.training_page import (
    GOALS,
    GREEN,
    GROUPED,
    LONGEST,
    PACKED,
    WATTS,
    WHAT,
    Results,
    Taken,
    report,
)
from green_tune import attention, course, lora, training
from green_tune import job as jobs
from green_tune.config import TrainConfig
from green_tune.course import Watch
from green_tune.errors import OutOfMemory
from green_tune.hardware import Device
from green_tune.loading import precision_of
from green_tune.shapes import SHAPES, Shape
from green_tune.training import FineTuner

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One measurement, as it is asked for."""

    base: Path  # a folder with a base model
    data: Path  # a folder with a task's examples
    task: str
    contender: str
    device: str
    threads: int
    batch_size: int
    learning_rate: float
    validate: int  # examples
    micro_batch_tokens: int = 0  # of green-tune's; 0: it chooses


def main() -> None:
    """Measures, prints the page and keeps it."""
    asked = _options().parse_args()
    with TemporaryDirectory() as made:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{made}/mlflow.db"
        known = _apart(_known, asked.device) | {
            "threads of torch": str(asked.threads),
            "examples of a step": str(asked.batch_size),
        }
        results: Results = {}
        for model, shape in models(asked).items():
            results |= _measured(asked, model, shape, Path(made))
    page = report(known, results, asked.watts_per_core, asked.device)
    sys.stdout.write(page)
    if not asked.discard:
        write("training", known["machine"].rpartition(",")[0], page, _kept(asked, known, results))


def _options() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__, formatter_class=form
    )
    names = partial(str.split, sep=",")
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with qa/, summarization/, sentiment/")
    add("--tasks", type=names, default=list(GOALS), help="separated by commas")
    add("--contenders", type=names, default=list(WHAT), help=", ".join(WHAT))
    add("--examples", type=int, default=240, help="of each task, on whole passages; 0: all")
    add("--validate", type=int, default=64, help="validation examples")
    add("--repeats", type=int, default=3)
    add("--batch-size", type=int, default=8, help="examples of a step")
    add("--learning-rate", type=float, default=2e-3)
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--models", type=names, default=list(SHAPES), help="with cuda: shapes, at random weights")
    add("--model", type=Path, help="a folder with a base model, instead of random weights")
    add("--hidden", type=int, default=256, help="width of the CPU's base model")
    add("--layers", type=int, default=6)
    add("--vocab", type=int, default=0, help="of the tokenizer; 4096, and 32000 with cuda")
    add("--threads", type=int, default=2, help="of torch")
    add("--watts-per-core", type=float, default=WATTS, help="assumed for a CPU")
    add("--micro-batch-tokens", type=int, default=0, help="of green-tune; 0: it chooses")
    add("--discard", action="store_true", help="keep no results")
    return parser


def _measured(asked: Any, model: str, shape: Shape | None, made: Path) -> Results:
    """All contenders on one base model, in turns; every other round backwards."""
    results: Results = {(model, task): {} for task in asked.tasks}
    with TemporaryDirectory(dir=made) as room:
        folders = {task: chosen(asked, task, Path(room)) for task in asked.tasks}
        base = asked.model or _apart(build, shape, Path(room), vocab(asked), folders, asked)
        plain = _setting(asked, base, folders)
        turns = [(task, name) for task in asked.tasks for name in asked.contenders]
        for repeat in range(asked.repeats):
            for task, name in turns[:: -1 if repeat % 2 else 1]:
                say(f"{model}, {task}, {name}, {repeat + 1} of {asked.repeats}")
                one = replace(plain, task=task, data=folders[task], contender=name)
                if taken := _tried(one):
                    results[model, task].setdefault(name, []).append(taken)
    return {
        key: {name: found[name] for name in asked.contenders if name in found}
        for key, found in results.items()
    }


def _setting(asked: Any, base: Path, folders: Mapping[str, Path]) -> Setting:
    return Setting(
        base=base,
        data=next(iter(folders.values())),
        task="",
        contender="",
        device=asked.device,
        threads=asked.threads,
        batch_size=asked.batch_size,
        learning_rate=asked.learning_rate,
        validate=asked.validate,
        micro_batch_tokens=asked.micro_batch_tokens,
    )


def _tried(setting: Setting) -> Taken | None:
    """A measurement; None where it does not fit into the device's memory."""
    try:
        taken = _apart(measure, setting)
    except (OutOfMemory, torch.OutOfMemoryError):
        say("  out of memory")
        return None
    say(f"  {taken.cpu_s:.1f} CPU s, {taken.wall_s:.1f} s, loss {taken.loss_after:.4f}")
    return taken


def _apart(work: Callable[..., R], *given: Any) -> R:
    """Does the work in a fork of this process, so that nothing of it stays behind."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(work, *given).result()


# One measurement


def measure(setting: Setting) -> Taken:
    """Trains once, in this process."""
    hush()
    torch.set_num_threads(setting.threads)
    job = jobs.prepare(_config(setting))
    tuner = training.load(job)
    watch = Stopwatch(job.device)
    before, after, computed, steps = (
        _green(tuner, watch) if setting.contender in GREEN else _other(tuner, watch, setting)
    )
    cuda, gpu = job.device.kind == "cuda", job.device.gpu
    peak = getattr(gpu, f"{job.plan.precision}_tflops") or 0 if gpu else 0
    return Taken(
        **watch.total._asdict(),
        examples=len(tuner.train),
        useful=sum(len(example["input_ids"]) for example in tuner.train),
        computed=computed,
        steps=steps,
        loss_before=before,
        loss_after=after,
        flops=_flops(tuner, computed),
        peak_flops=peak * 1e12,
        memory_gib=torch.cuda.max_memory_allocated() / course.GIB if cuda else 0.0,
        estimate_gib=job.plan.memory_gib,
    )


def _config(setting: Setting) -> TrainConfig:
    return TrainConfig(
        model=str(setting.base),
        task=setting.task,
        data=str(setting.data),
        gpu="cpu" if setting.device == "cpu" else "auto",
        batch_size=setting.batch_size,
        learning_rate=setting.learning_rate,
        max_seq_len=LONGEST,
        evals=1,
        quality_examples=0,
        max_eval_examples=0,
        batching=GREEN.get(setting.contender, "auto"),
        micro_batch_tokens=setting.micro_batch_tokens,
    )


Course = tuple[float, float, int, int]  # loss before and after, tokens computed, steps


def _green(tuner: FineTuner, watch: "Stopwatch") -> Course:
    result = watch.time(lambda: tuner.fit(Watch(phase=watch.phase)))
    return result.start_val_loss, result.val_loss, result.processed_tokens, result.steps


def _other(tuner: FineTuner, watch: "Stopwatch", setting: Setting) -> Course:
    """Another trainer on the same model, with transformers' own attention and peft's own layers."""
    lora.unfuse(tuner.model)
    before = _validated(tuner)
    with attention.stock(tuner.loss.base), TemporaryDirectory() as folder:
        trainer = _trainer(tuner, setting, folder)
        counting = Counting(trainer.data_collator)
        trainer.data_collator = counting
        trainer.remove_callback(PrinterCallback)
        watch.time(trainer.train)
    return before, _validated(tuner), counting.tokens, trainer.state.global_step


def _validated(tuner: FineTuner) -> float:
    """By green-tune's own function, in the precision that it trains in."""
    with precision_of(tuner.job):
        return tuner.validate().loss


def _trainer(tuner: FineTuner, setting: Setting, folder: str) -> Any:
    rows = Dataset.from_list([_row(example) for example in tuner.train])
    given: dict[str, Any] = {
        "model": tuner.model,
        "train_dataset": rows,
        "processing_class": _padding(tuner),
    }
    arguments = _arguments(tuner, folder)
    if setting.contender in PACKED:
        packing = _packing(tuner) if setting.contender == "trl-packing" else _PADDING_FREE
        return SFTTrainer(args=SFTConfig(**arguments | packing), **given)
    grouped = setting.contender == GROUPED
    if grouped:
        given["train_dataset"] = rows.select(_by_length(tuner, setting.batch_size))
    collator = DataCollatorForSeq2Seq(
        given["processing_class"],
        padding="longest" if grouped else "max_length",
        max_length=LONGEST,
    )
    arguments["train_sampling_strategy"] = "sequential" if grouped else "random"
    return Trainer(args=TrainingArguments(**arguments), data_collator=collator, **given)


def _by_length(tuner: FineTuner, size: int) -> list[int]:
    """The order of `group_by_length` in a large data set: 50 batches are sorted at a time.

    In one as small as this it would sort fewer, and pad more than it does where it matters.
    """
    lengths = [len(example["input_ids"]) for example in tuner.train]
    order: list[int] = get_length_grouped_indices(  # type: ignore[no-untyped-call]
        lengths, size, mega_batch_mult=50, generator=torch.Generator().manual_seed(0)
    )
    return order


_PADDING_FREE = {"padding_free": True, "packing": False, "max_length": None}


def _packing(tuner: FineTuner) -> dict[str, Any]:
    lengths = [len(example["input_ids"]) for example in tuner.train]
    row = max(max(lengths), sum(lengths) // tuner.steps)
    return {
        "packing": True,
        "packing_strategy": "bfd",
        "max_length": row,
        "per_device_train_batch_size": 1,
    }


def _arguments(tuner: FineTuner, folder: str) -> dict[str, Any]:
    """green-tune's choices, in transformers' words."""
    config, plan, cuda = tuner.job.config, tuner.job.plan, tuner.job.device.kind == "cuda"
    return {
        "output_dir": folder,
        "per_device_train_batch_size": config.batch_size,
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        "bf16": plan.precision == "bf16",
        "fp16": plan.precision == "fp16",
        "gradient_checkpointing": plan.checkpointing,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _row(example: Any) -> dict[str, Any]:
    ids = example["input_ids"]
    unlabelled = len(ids) - example["labelled"]
    return {"input_ids": ids, "labels": [-100] * unlabelled + ids[unlabelled:]}


def _padding(tuner: FineTuner) -> Any:
    """The tokenizer; many have no padding token, and any will do."""
    tokenizer = tuner.tokenizer
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _flops(tuner: FineTuner, computed: int) -> float:
    """Modelled, of the whole training: forward and back to the inputs, no gradient of weights.

    4 for each weight and token, the output layer's where there is a label; 6 x layers x width for
    each pair of tokens of an example (causal attention; shared and padded ones left as they are).
    Adapters are left out: under 1 %. For those who compute every logit it is a lower bound.
    """
    shape = tuner.job.shape
    if shape is None:
        return 0.0
    labels = sum(example["labelled"] for example in tuner.train)
    pairs = sum(len(example["input_ids"]) ** 2 for example in tuner.train)
    head = shape.vocab * shape.hidden * labels
    attended = shape.layers * shape.q_width * pairs
    return 4.0 * (shape.linear_parameters * computed + head) + 6.0 * attended


class Counting:
    """A collator that counts the tokens it hands out."""

    def __init__(self, collator: Callable[..., Any]) -> None:
        self._collator = collator
        self.tokens = 0

    def __call__(self, rows: Any) -> Any:
        """A batch of these rows."""
        batch = self._collator(rows)
        self.tokens += batch["input_ids"].numel()
        return batch


class Reading(NamedTuple):
    """Clocks and counters, of which only differences mean something."""

    wall_s: float
    cpu_s: float
    gpu_j: float

    def since(self, before: "Reading") -> "Reading":
        """What was spent from one to the other."""
        return Reading(*map(operator.sub, self, before))


class Stopwatch:
    """What a training spends, and not what is spent in its phases."""

    def __init__(self, device: Device) -> None:
        self._counter = _counter(device)
        self.total = self._apart = Reading(0.0, 0.0, 0.0)

    def time(self, work: Callable[[], R]) -> R:
        """Does the work."""
        begin = self._read()
        result = work()
        self.total = self._read().since(begin).since(self._apart)
        return result

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is inside does not count."""
        begin = self._read()
        yield
        self._apart = Reading(*map(operator.add, self._apart, self._read().since(begin)))

    def _read(self) -> Reading:
        training.synchronize()
        return Reading(time.perf_counter(), time.process_time(), self._counter())


def _counter(device: Device) -> Callable[[], float]:
    """Joules that the GPU has used since its driver was loaded; always 0 on a CPU."""
    if device.kind == "cpu":
        return lambda: 0.0
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(device.uuid)
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000


def _known(kind: str) -> dict[str, str]:
    """What this is measured on."""
    gpu = "cpu" if kind == "cpu" else "auto"
    return facts(jobs.prepare(TrainConfig(gpu=gpu)).device) | {"trl": metadata.version("trl")}


def _kept(asked: Any, known: Mapping[str, str], results: Results) -> dict[str, Any]:
    """All samples, and what was asked for; no folder's name."""
    options = {name: value for name, value in vars(asked).items() if name not in ("data", "model")}
    samples = [
        {"model": model, "task": task, "contender": name, **asdict(taken)}
        for (model, task), found in results.items()
        for name, every in found.items()
        for taken in every
    ]
    return {"facts": dict(known), "asked": options, "samples": samples}


if __name__ == "__main__":
    main()
