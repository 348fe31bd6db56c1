"""What is counted before a training is what the training then does: nothing here is an estimate."""

from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_batches import example, examples

from green_tune import batches, effort, training, workload
from green_tune import job as jobs
from green_tune.attention import Layout
from green_tune.batches import Micro
from green_tune.config import TrainConfig
from green_tune.course import Course, Progress, Validation, Watch
from green_tune.data import Data
from green_tune.effort import Texts
from green_tune.job import Job
from green_tune.tasks import Example
from green_tune.workload import Counts

MakeJob = Callable[..., Job]
CPU = torch.device("cpu")


def counting_passes(loss: torch.nn.Module) -> Counter[str]:
    """How often it is called from now on, with gradients and in validations."""
    passes: Counter[str] = Counter()

    def count(*_: object) -> None:
        passes["train" if torch.is_grad_enabled() else "eval"] += 1

    loss.register_forward_hook(count)
    return passes


def texts_of(job: Job) -> Texts:
    """The examples as a quote reads them, without the base model."""
    texts, assumed = training.texts_of(jobs.find(job.config))
    assert not assumed
    return texts


@pytest.mark.parametrize(
    ("task", "batching"),
    [("qa", "tree"), ("sentiment", "flat"), ("summarization", "flat"), ("qa", "padded")],
)
def test_a_training_does_what_was_counted_before_it(
    make_job: MakeJob, task: str, batching: str
) -> None:
    job = make_job(task=task, batching=batching, accumulation_steps=2, epochs=2, evals=3,
                   max_train_examples=44)  # fmt: skip
    assert job.shape
    work = effort.work(job.config, job.plan, job.shape, texts_of(job), kind="cpu")
    tuner = training.load(job)
    passes = counting_passes(tuner.loss)
    result = tuner.fit()
    assert result.steps == work.train_steps == 6  # the last of each epoch has 12 examples
    assert result.train_tokens == work.useful_tokens
    assert result.processed_tokens == work.processed_tokens
    assert passes == {"train": work.train_passes, "eval": work.eval_passes}


def attended(micro: Micro) -> int:
    """Pairs of tokens that attention leaves, by the masks that it is given."""
    if micro.width:
        rows = len(micro.ids) // micro.width
        return rows * int(torch.ones(micro.width, micro.width).tril().sum())
    layout, pairs = Layout(micro, CPU), 0
    for tree, (start, end) in enumerate(layout.trees):
        mask = layout.mask(tree, None, torch.float32)
        causal = torch.zeros(end - start, end - start).masked_fill(
            ~torch.ones(end - start, end - start, dtype=torch.bool).tril(), -torch.inf
        )
        pairs += int(((causal if mask is None else mask) == 0).sum())
    return pairs


@pytest.mark.parametrize("batching", ["tree", "flat", "padded"])
@given(made=examples(), tokens=st.integers(1, 200))
def test_pairs_are_those_that_attention_leaves(
    batching: batches.Batching, made: list[Any], tokens: int
) -> None:
    for micro in batches.cut(made, batching, tokens=tokens, rows=3):
        assert workload.of_micros([micro]).pairs == attended(micro)


def test_a_shared_passage_is_processed_once_and_useful_for_each() -> None:
    passage = list(range(100, 150))
    made = [example([*passage, 1, n], labelled=2) for n in range(3)]
    found = workload.of_step(made, "tree", tokens=1000)
    # A stem of 51 tokens, and three leaves of one token that see it and themselves.
    assert found == Counts(
        useful=3 * 52, processed=51 + 3, pairs=51 * 52 / 2 + 3 * 52, labels=6, passes=1, steps=1
    )
    assert found.padding == pytest.approx(1 - 156 / 54)
    flat = workload.of_step(made, "flat", tokens=104)
    assert flat == Counts(
        useful=156, processed=156, pairs=3 * 52 * 53 / 2, labels=6, passes=2, steps=1
    )


def test_padding_is_the_share_of_tokens_that_nobody_asked_for() -> None:
    made = [example(list(range(length))) for length in (3, 9)]
    found = workload.of_step(made, "padded", tokens=0, rows=2)
    assert (found.useful, found.processed, found.pairs) == (12, 18, 2 * 45)
    assert found.padding == pytest.approx(6 / 18)
    assert Counts().padding == 0.0


@pytest.mark.parametrize("batching", ["tree", "flat", "padded"])
def test_the_rest_of_a_long_training_is_like_what_was_counted_of_it(
    make_job: MakeJob, batching: str
) -> None:
    job = make_job(task="qa", batching=batching, max_train_examples=0, epochs=10)
    texts = texts_of(job)
    assert len(texts.train) == 320
    found = [
        workload.of_training(texts.train, texts.groups, job.config, job.plan, counted)
        for counted in (1000, workload.COUNTED)
    ]
    assert found[0].steps == found[1].steps == 400
    assert found[0] != found[1]
    assert astuple(found[0]) == pytest.approx(astuple(found[1]), rel=0.01)


def test_at_least_one_step_is_counted(make_job: MakeJob) -> None:
    job = make_job(task="sentiment", batch_size=32, max_train_examples=64)
    texts = texts_of(job)
    found = workload.of_training(texts.train, texts.groups, job.config, job.plan, counted=1)
    assert found.steps == 2
    assert found.useful > 0


def test_examples_on_one_passage_are_a_group_whichever_are_left_out() -> None:
    passages = ("A", "B", "C", "A", "B")
    rows = [Example(head="On ", body=text, tail="?", completion="x") for text in passages]
    data = Data(source="made up", train=rows, validation=rows)
    kept = [example([1, 2], number=number) for number in (0, 2, 3, 4)]
    assert workload.groups_of(data, kept) == [0, 1, 0, 2]


def validated(evals: int, steps: int) -> int:
    """How often a course validates after its start."""
    seen: list[Progress] = []
    once = Validation(loss=1.0, bits_per_byte=1.0)
    tuner: Any = SimpleNamespace(
        job=SimpleNamespace(config=TrainConfig(evals=evals)),
        model=SimpleNamespace(train=lambda: None),
        steps=steps,
        validate=lambda: once,
        validate_start=lambda: once,
        save=lambda folder: None,
    )
    stepper: Any = SimpleNamespace(
        useful=1, learning_rate=1.0, grad_norm=1.0, train_loss=lambda: (1.0, 1)
    )
    course = Course(tuner, stepper, Watch(on_progress=seen.append))
    course.begin()
    while course.goes_on():
        course.count()
        course.look()
    return sum("val_loss" in progress.metrics for progress in seen) - 1


@given(evals=st.integers(1, 50), steps=st.integers(1, 80))
def test_validations_are_as_many_as_a_course_makes(evals: int, steps: int) -> None:
    assert workload.validations(TrainConfig(evals=evals), steps) == validated(evals, steps)


def test_a_padded_validation_has_the_rows_of_a_step_or_as_many_as_fit(make_job: MakeJob) -> None:
    plan = make_job(batching="padded", batch_size=8).plan
    made = [example(list(range(length)), number=length) for length in range(2, 22)]
    for tokens, passes in (
        (plan.micro_batch_tokens, 3),
        (plan.micro_batch_tokens // 4, 10),
        (1, 20),
    ):
        found = workload.of_validation(made, plan, tokens)
        assert (found.passes, found.steps, found.labels) == (passes, 0, 20)


def test_trials_of_all_sizes_share_one_validation_on_a_cpu_alone(make_job: MakeJob) -> None:
    made = [make_job(batch_size=size, batching="flat") for size in (1, 4, 16)]
    assert len({job.plan.micro_batch_tokens for job in made}) > 1
    at_once = {workload.validated_at_once(job.config, job.plan, "cpu") for job in made}
    assert len(at_once) == 1
    for job in made:
        own = job.plan.micro_batch_tokens
        assert workload.validated_at_once(job.config, job.plan, "cuda") == own
        asked = replace(job.config, micro_batch_tokens=own)
        assert workload.validated_at_once(asked, job.plan, "cpu") == own
