"""A sounding: a few seconds of real steps on this machine, which foretell the time of all.

A base model of the right shape with random weights, so nothing is loaded; the job's own examples,
in steps of several sizes, so that what a token costs is told apart from what a pass and a step
cost whatever is in them. Of a large model some layers stand for all. It costs what it takes, which
its caller's meter counts.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from green_tune import pace, quality, stop, training, workload
from green_tune.batches import Schedule
from green_tune.course import Phase
from green_tune.effort import GIGA, Adapter, Texts, Work
from green_tune.effort import forward as forward_flop
from green_tune.effort import training as training_flop
from green_tune.errors import ConfigError
from green_tune.footprint import SECONDS_PER_HOUR
from green_tune.job import Job
from green_tune.loading import named_out_of_memory
from green_tune.pace import Pace, Seen
from green_tune.shapes import Shape
from green_tune.stepper import Stepper
from green_tune.tokens import Encoded
from green_tune.training import FineTuner, synchronize
from green_tune.workload import Counts

SECONDS = 4.0
TIMES = (0.25, 1.0, 4.0)  # sizes of steps, in those of the job
FEWEST = 2  # timed steps, however long they take
LARGEST_B = {"cpu": 0.2, "cuda": 2.0}  # billion parameters of a sketch; of more, some layers
LEAST_LAYERS = 2
EVAL_SHARE, QUALITY_SHARE, QUALITY_EXAMPLES = 0.25, 0.5, 4

Spent = tuple[float, float]  # kWh and hours


@dataclass(frozen=True, kw_only=True)
class Sounding:
    """What was timed: steps of the training, a part of a validation, and some predictions.

    `own` are the steps of the training's own size, which count the most for it. `load_s` is what a
    base model takes to be made ready, and `save_s` an adapter to be written.
    """

    seen: Sequence[Seen]
    own: Sequence[Seen]
    quality_s_per_example: float
    load_s: float
    save_s: float
    layers: int
    of_layers: int

    @property
    def note(self) -> str:
        """What it was, in a few words."""
        steps = sum(run.work.train_steps > 0 for run in self.seen)
        part = f", {self.layers} of {self.of_layers} layers" * (self.layers < self.of_layers)
        return f"{steps} steps timed here{part}"


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """A job cut down to what is timed of it, loaded."""

    job: Job
    shape: Shape
    whole: Shape
    tuner: FineTuner
    made_s: float  # what it took


def sketch(job: Job, texts: Texts) -> Sketch:
    """Makes what will be timed, on the job's examples in tokens.

    Raises:
        ConfigError: it cannot be sounded: its shape is not known, or its base is in 4 bits.
        UsageError: config, tokenizer, device or data cannot be used.
        OutOfMemory: not even this fits.
    """
    if job.shape is None:
        raise ConfigError(f"the shape of {job.source.name} is not known, so it cannot be sounded")
    if job.plan.quantization != "none":
        raise ConfigError(f"{job.source.name} would be in {job.plan.quantization}: not sounded")
    layers = _layers(job.shape, LARGEST_B[job.device.kind])
    adapted = job.config.lora_layers
    if adapted:
        adapted = max(1, round(adapted * layers / job.shape.layers))
    shape = replace(job.shape, layers=layers)
    config = replace(job.config, lora_layers=adapted)
    small = replace(job, shape=shape, config=config)
    began = time.perf_counter()
    quality.prepare(small)
    tuner = training.sketch(small, layers, texts)
    made_s = time.perf_counter() - began
    return Sketch(job=small, shape=shape, whole=job.shape, tuner=tuner, made_s=made_s)


def sound(sketch: Sketch, phase: Phase, seconds: float = SECONDS) -> Sounding:
    """Times a sketch; each part inside of its own phase of a meter.

    Raises:
        OutOfMemory: not even this fits.
        ModelError: the model cannot be trained in these batches.
    """
    with phase("train"), named_out_of_memory(sketch.job):
        sketch.tuner.check()
        timed = list(_steps(sketch, seconds))
    with phase("eval"), named_out_of_memory(sketch.job):
        evals = _evaluation(sketch, EVAL_SHARE * seconds)
    with phase("quality"):
        each_s = _quality(sketch, QUALITY_SHARE * seconds)
    with phase("save"):
        saved_s = _timed(lambda: _save(sketch.tuner))
    ratio = sketch.whole.layers / sketch.shape.layers
    size = min(len(sketch.tuner.train), sketch.job.plan.examples)
    return Sounding(
        seen=[*(seen for _, seen in timed), evals],
        own=[seen for of, seen in timed if of == size],
        quality_s_per_example=each_s * ratio,
        load_s=sketch.made_s * ratio,
        save_s=saved_s * ratio,
        layers=sketch.shape.layers,
        of_layers=sketch.whole.layers,
    )


def paced(found: Sounding, start: Pace, setup: Spent, busy: Spent) -> Pace:
    """The pace that a sounding shows; what it does not tell apart is as in `start`.

    `setup` and `busy` are kWh and hours that a meter saw: of the imports and the data, which any
    run has, and of the steps.
    """
    fitted = pace.scaled(pace.fitted(start, found.seen), found.own)
    return replace(
        fitted,
        quality_s_per_example=found.quality_s_per_example or fitted.quality_s_per_example,
        setup_s=setup[1] * SECONDS_PER_HOUR + found.load_s,
        save_s=found.save_s,
        loading_w=_watts(setup, start.loading_w),
        busy_w=_watts(busy, start.busy_w),
    )


def _watts(spent: Spent, otherwise: float) -> float:
    kwh, hours = spent
    return kwh / hours * pace.W_PER_KW if hours else otherwise


def _layers(shape: Shape, most_b: float) -> int:
    """As many layers as make a model of at most so many billions, with its embeddings."""
    each = shape.linear_parameters / shape.layers
    room = most_b * GIGA - (shape.parameters - shape.linear_parameters)
    return min(shape.layers, max(LEAST_LAYERS, int(room // each)))


def _steps(sketch: Sketch, seconds: float) -> Iterator[tuple[int, Seen]]:
    """Steps of several sizes, in examples, while there is time; the first of each warms up."""
    stepper = Stepper(sketch.job, sketch.tuner.loss, 1000)
    sketch.tuner.model.train()
    sizes = _sizes(sketch)
    began, done = time.perf_counter(), 0
    took: dict[int, float] = {}  # by each size that was tried
    drawn = {size: _drawn(sketch, size) for size in sizes}
    while True:
        for size in sizes:
            stop.check()
            left = seconds - (time.perf_counter() - began)
            late = _expected(took, size) > left
            if late and (done >= FEWEST or size != sizes[0]):
                continue
            examples = next(drawn[size])
            spent = _timed(lambda some=examples: stepper.step(some))
            if size in took:
                done += 1
                yield size, _seen(sketch, examples, spent)
            took[size] = spent
        if done >= FEWEST and time.perf_counter() - began + min(took.values()) > seconds:
            return


def _expected(took: Mapping[int, float], size: int) -> float:
    """Seconds of a step; of a size that is new, with its warm-up, by the largest one before it."""
    if size in took:
        return took[size]
    before = max((other for other in took if other < size), default=0)
    return 2 * took[before] * size / before if before else 0.0


def _sizes(sketch: Sketch) -> list[int]:
    most = min(len(sketch.tuner.train), int(TIMES[-1] * sketch.job.plan.examples))
    wanted = (round(times * sketch.job.plan.examples) for times in TIMES)
    return sorted({max(1, min(most, size)) for size in wanted})


def _drawn(sketch: Sketch, size: int) -> Iterator[list[Encoded]]:
    how: Any = sketch.job.plan.batching
    groups, seed = sketch.tuner.texts.groups, sketch.job.config.seed
    schedule = Schedule(groups, size=size, epochs=10**6, seed=seed, batching=how)
    for number in range(schedule.steps):
        yield [sketch.tuner.train[one] for one in schedule.step(number)]


def _seen(sketch: Sketch, examples: Sequence[Encoded], took_s: float) -> Seen:
    plan = sketch.job.plan
    how: Any = plan.batching
    counts = workload.of_step(
        examples, how, tokens=plan.micro_batch_tokens, rows=plan.micro_batch_size
    )
    adapter = Adapter.of(sketch.job.config, plan)
    work = _work(sketch, train=counts, gflop=training_flop(sketch.shape, counts, adapter) / GIGA)
    return Seen(work=work, phases={"train": pace.amount(took_s, 0.0)})


def _evaluation(sketch: Sketch, seconds: float) -> Seen:
    """Validation micro-batches, as many as the time allows; the first only warms up."""
    plan, adapter = sketch.job.plan, Adapter.of(sketch.job.config, sketch.job.plan)
    at_once = workload.validated_at_once(sketch.job.config, plan, sketch.job.device.kind)
    micros = workload.validation_micros(sketch.tuner.validation, plan, at_once)
    took, counts = 0.0, Counts()
    sketch.tuner.model.eval()
    with torch.inference_mode():
        _timed(lambda: float(sketch.tuner.loss(micros[0])))
        for micro in micros:
            took += _timed(lambda one=micro: float(sketch.tuner.loss(one)))
            counts += workload.of_micros([micro])
            if took > seconds:
                break
    sketch.tuner.model.train()
    gflop = forward_flop(sketch.shape, counts, adapter) / GIGA
    return Seen(
        work=_work(sketch, evals=counts, gflop=gflop), phases={"eval": pace.amount(took, 0.0)}
    )


def _quality(sketch: Sketch, seconds: float) -> float:
    """Seconds of a prediction among all that are asked for, by batches of two sizes.

    A batch takes a time of its own, whatever is in it, and one for each of its examples. The larger
    one has as many as there is time for. Random weights never end a text early, so of a trained
    model this is the upper end.
    """
    asked = min(sketch.job.config.quality_examples, len(sketch.tuner.validation))
    if not asked:
        return 0.0
    few = min(QUALITY_EXAMPLES, asked)
    first = _predicted(sketch, few)
    more = min(asked, int(few * seconds / first))
    if more < few * 2:
        return first / few
    second = _predicted(sketch, more)
    each = max(0.0, second - first) / (more - few)
    return (max(0.0, second - more * each) * _batches(sketch, asked) + each * asked) / asked


def _batches(sketch: Sketch, examples: int) -> int:
    """How many batches so many predictions are made in, as their texts may become that long."""
    lengths = [len(one["input_ids"]) for one in sketch.tuner.validation[:examples]]
    tokens = sum(lengths) + examples * sketch.job.task.max_new_tokens
    return math.ceil(tokens / (quality.ROOMIER * sketch.job.plan.micro_batch_tokens))


def _save(tuner: FineTuner) -> None:
    with TemporaryDirectory(prefix="green-tune-probe-") as folder:
        tuner.save(Path(folder))


def _predicted(sketch: Sketch, number: int) -> float:
    tuner = sketch.tuner
    whole, tuner.job = (
        tuner.job,
        replace(tuner.job, config=replace(tuner.job.config, quality_examples=number)),
    )
    try:
        return _timed(lambda: quality.measure(tuner))
    finally:
        tuner.job = whole


def _timed(action: Any) -> float:
    synchronize()
    began = time.perf_counter()
    action()
    synchronize()
    return time.perf_counter() - began


def _work(
    sketch: Sketch, *, train: Counts | None = None, evals: Counts | None = None, gflop: float
) -> Work:
    train_, evals_ = train or Counts(), evals or Counts()
    return Work(
        layers=sketch.shape.layers,
        train_gflop=gflop if train else 0.0,
        train_passes=train_.passes,
        train_steps=train_.steps,
        eval_gflop=gflop if evals else 0.0,
        eval_passes=evals_.passes,
        quality_examples=0.0,
        useful_tokens=train_.useful,
        processed_tokens=train_.processed,
    )
