"""Operations are held against those that torch counts while a real adapter is trained."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from green_tune import batches, effort, training, workload
from green_tune.batches import Micro
from green_tune.effort import Adapter, Work
from green_tune.job import Job
from green_tune.shapes import SHAPES
from green_tune.workload import Counts

MakeJob = Callable[..., Job]
aten: Any = torch.ops.aten
PRODUCTS = (aten.mm, aten.addmm, aten.addmm_)
LLAMA = SHAPES["llama-2-7b"]
# 32 layers of 4 x 4096 x 4096 and 3 x 4096 x 11008 weights; the count is LLaMA's own, without
# embeddings. LoRA of rank 16 on all of them: 16 x (in + out) for each matrix.
WEIGHTS, ADAPTER = 6_476_005_376, 39_976_960
TOKEN = Counts(processed=1.0)  # without a label, and without anything to attend to


def in_place(_: object, one: Sequence[int], other: Sequence[int], **__: object) -> int:
    """What torch counts for `addmm`, given the shapes; it does not know `addmm_`."""
    return 2 * one[0] * one[1] * other[1]


def counted(tuner: training.FineTuner, micros: Sequence[Micro], *, back: bool) -> tuple[int, int]:
    """Operations of linear layers, and of attention, as torch counts them."""
    counter = FlopCounterMode(display=False, custom_mapping={aten.addmm_: in_place})
    tuner.model.train()
    with counter, torch.set_grad_enabled(back):
        for micro in micros:
            loss = tuner.loss(micro)
            if back:
                loss.backward()
    found = counter.get_flop_counts()["Global"]
    assert set(found) <= {*PRODUCTS, aten.bmm}
    return sum(found.get(name, 0) for name in PRODUCTS), found.get(aten.bmm, 0)


def spared(tuner: training.FineTuner, adapted: Sequence[str], plain: Sequence[str]) -> int:
    """Products for each token that nothing asks for: the way back out of the lowest adapted layer.

    `effort` does not know of these few; of a training of 32 layers they are about a hundredth.
    """
    shape = tuner.job.shape
    assert shape
    rank = tuner.job.config.lora_rank
    wide = sum(shape.matrices[name][0] * (shape.matrices[name][1] + rank) for name in adapted)
    return 2 * (wide + sum(a * b for a, b in (shape.matrices[name] for name in plain)))


@pytest.mark.parametrize(
    ("options", "adapted", "plain"),
    [
        ({}, "q k v", ""),
        ({"lora_rank": 4, "model": "tiny-wide"}, "q k v", ""),
        ({"lora_targets": "attention"}, "q k v", ""),
        ({"lora_targets": "mlp"}, "gate up", "q k v o"),
        ({"lora_layers": 1}, "q k v", ""),
        ({"gradient_checkpointing": "true"}, "q k v", ""),
        ({"lora_layers": 1, "gradient_checkpointing": "true"}, "q k v", ""),
        ({"batching": "tree", "task": "qa"}, "q k v", ""),
        ({"batching": "padded"}, "q k v", ""),
    ],
)
def test_linear_layers_take_what_torch_counts(
    make_job: MakeJob, options: dict[str, Any], adapted: str, plain: str
) -> None:
    job = make_job(**options)
    tuner, plan, shape = training.load(job), job.plan, job.shape
    assert shape
    how: Any = plan.batching
    micros = batches.cut(
        tuner.train[:8], how, tokens=plan.micro_batch_tokens, rows=plan.micro_batch_size
    )
    counts = replace(workload.of_micros(micros), pairs=0.0)
    adapter = Adapter.of(job.config, plan)
    once, _ = counted(tuner, micros, back=False)
    assert once == effort.forward(shape, counts, adapter)
    both, _ = counted(tuner, micros, back=True)
    names = [[f"{name}_proj" for name in text.split()] for text in (adapted, plain)]
    few = spared(tuner, *names) * counts.processed
    assert both == pytest.approx(effort.training(shape, counts, adapter) - few, rel=1e-9)


@pytest.mark.parametrize(
    "options", [{}, {"lora_layers": 1}, {"gradient_checkpointing": "true"}], ids=str
)
def test_attention_takes_half_of_what_torch_counts_for_whole_squares(
    make_job: MakeJob, options: dict[str, Any]
) -> None:
    job = make_job(batching="padded", **options)
    tuner, shape = training.load(job), job.shape
    assert shape
    tuner.loss.base.set_attn_implementation("eager")  # two plain products, of n x n each
    micro = batches.padded(tuner.train[:4])
    pairs = replace(Counts(), pairs=workload.of_micros([micro]).pairs)
    squares = 2 * micro.width / (micro.width + 1)
    adapter = Adapter.of(job.config, job.plan)
    for back, said in ((False, effort.forward), (True, effort.training)):
        _, found = counted(tuner, [micro], back=back)
        # rel: the angles of positions are a small product as well
        assert found == pytest.approx(said(shape, pairs, adapter) * squares, rel=2e-3)


def test_an_adapters_own_weights_are_those_that_are_trained(make_job: MakeJob) -> None:
    job = make_job(lora_rank=8, lora_layers=1)
    assert job.shape
    trained = training.load(job).model.num_parameters(only_trainable=True)
    with_it = effort.forward(job.shape, TOKEN, Adapter.of(job.config, job.plan))
    assert with_it - effort.forward(job.shape, TOKEN) == 2 * trained


def test_a_token_costs_four_for_each_frozen_weight_and_six_for_each_trained_one() -> None:
    lora = Adapter(rank=16)
    assert effort.forward(LLAMA, TOKEN) == 2 * WEIGHTS
    assert effort.forward(LLAMA, TOKEN, lora) == 2 * (WEIGHTS + ADAPTER)
    assert effort.training(LLAMA, TOKEN, lora) == 4 * WEIGHTS + 6 * ADAPTER


def test_checkpointing_computes_the_layers_forward_once_more() -> None:
    again = Adapter(rank=16, checkpointing=True)
    assert effort.training(LLAMA, TOKEN, again) == 6 * WEIGHTS + 8 * ADAPTER


def test_nothing_goes_back_below_the_lowest_adapted_layer() -> None:
    half = Adapter(rank=16, layers=16)
    assert effort.training(LLAMA, TOKEN, half) == 3 * WEIGHTS + 3 * ADAPTER
    again = replace(half, checkpointing=True)
    assert effort.training(LLAMA, TOKEN, again) == 4 * WEIGHTS + 4 * ADAPTER


def test_a_label_costs_the_output_layer_twice_and_a_pair_its_scores_and_values() -> None:
    lora = Adapter(rank=16)
    label, pair = Counts(labels=1.0), Counts(pairs=1.0)
    assert effort.forward(LLAMA, label, lora) == 2 * 4096 * 32000
    assert effort.training(LLAMA, label, lora) == 4 * 4096 * 32000
    assert effort.forward(LLAMA, pair, lora) == 32 * 4 * 4096
    assert effort.training(LLAMA, pair, lora) == 3 * 32 * 4 * 4096


def test_a_run_has_one_validation_more_than_a_trial_and_scores_before_and_after(
    make_job: MakeJob,
) -> None:
    job = make_job(evals=3, quality_examples=5)
    assert job.shape
    texts = training.load(job).texts
    alone, trial = (
        effort.work(job.config, job.plan, job.shape, texts, kind="cpu", warmed=warmed)
        for warmed in (False, True)
    )
    assert alone.eval_gflop == pytest.approx(trial.eval_gflop * 4 / 3)
    assert alone.eval_passes == trial.eval_passes * 4 / 3
    assert alone.quality_examples == trial.quality_examples == 10
    assert (alone.train_gflop, alone.layers) == (trial.train_gflop, 2)
    config = replace(job.config, quality_examples=64)  # of a dozen
    more = effort.work(config, job.plan, job.shape, texts, kind="cpu")
    assert more.quality_examples == 24


def test_work_is_read_back_from_metrics_and_from_all_of_them_alone() -> None:
    work = Work(
        layers=2.0, train_gflop=1.5, train_passes=3.0, train_steps=2.0, eval_gflop=0.25,
        eval_passes=4.0, quality_examples=8.0, useful_tokens=100.0, processed_tokens=120.0,
    )  # fmt: skip
    metrics = work.to_metrics()
    assert metrics["work.train_gflop"] == 1.5
    assert Work.read({**metrics, "val_loss": 1.0}) == work
    for name in metrics:
        assert Work.read({k: v for k, v in metrics.items() if k != name}) is None
        for broken in (-1.0, math.nan, math.inf):  # a record of it must not fail a training
            assert Work.read({**metrics, name: broken}) is None
