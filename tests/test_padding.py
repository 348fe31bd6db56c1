"""The padding X-ray: each method counts what it would make of the real examples."""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.trainer_pt_utils import LengthGroupedSampler

from green_tune import batches, effort, padding, tiny, workload
from green_tune.batches import Schedule
from green_tune.config import TrainConfig
from green_tune.data import load
from green_tune.effort import GIGA, Adapter, Texts
from green_tune.hardware import Device
from green_tune.models import BUILT
from green_tune.padding import Row, xray
from green_tune.plan import Plan, make_plan
from green_tune.shapes import Shape
from green_tune.tasks import TASKS
from green_tune.tokens import Encoder
from green_tune.workload import Counts

LONGEST = 512
CPU = Device(kind="cpu", name="a CPU", memory_gib=16.0)
SHAPE = Shape.of(BUILT["tiny"]) or pytest.fail("tiny has a shape")
Job = tuple[Texts, TrainConfig, Plan]


@pytest.fixture(scope="module")
def tokenizer(_cache: None) -> Any:
    return AutoTokenizer.from_pretrained(str(tiny.folder()))


@cache
def sample(tokenizer: Any, task: str) -> tuple[Texts, float]:
    """The built-in examples, and how much of their prompts is shared."""
    data = load(TASKS[task], "sample")
    encoder = Encoder(tokenizer, LONGEST)
    train, validation = encoder.encode(data.train), encoder.encode(data.validation)
    groups = workload.groups_of(data, train)
    return Texts(train=train, validation=validation, groups=groups), data.shared


def job(tokenizer: Any, task: str = "qa", **asked: Any) -> Job:
    """A training on the built-in sample, planned for a CPU."""
    config = TrainConfig(task=task, max_seq_len=LONGEST, **asked)
    texts, shared = sample(tokenizer, task)
    return texts, config, make_plan(config, CPU, SHAPE, shared=shared)


def rows_of(made: Job, **more: Any) -> list[Row]:
    texts, config, plan = made
    return xray(texts, SHAPE, config, plan, max_seq_len=LONGEST, **more)


def one(rows: Sequence[Row], method: str, batch_size: int) -> Row:
    (row,) = (r for r in rows if (r.method, r.batch_size) == (method, batch_size))
    return row


def mine(rows: Sequence[Row]) -> Row:
    (row,) = (r for r in rows if r.mine)
    return row


def assert_counts(row: Row, counts: Counts, made: Job) -> None:
    """The row has these tokens, and the operations that go with their pairs and labels."""
    assert (row.useful, row.processed) == pytest.approx((counts.useful, counts.processed))
    assert row.padding == pytest.approx(counts.padding)
    gflop = effort.training(SHAPE, counts, Adapter.of(made[1], made[2])) / GIGA
    assert row.gflop == pytest.approx(gflop)


@pytest.mark.parametrize("task", ["qa", "sentiment", "summarization"])
@pytest.mark.parametrize("batching", ["tree", "flat", "padded"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_jobs_own_row_counts_what_its_training_will_process(
    tokenizer: Any, task: str, batching: str, accumulation: int
) -> None:
    made = job(tokenizer, task, batching=batching, accumulation_steps=accumulation)
    texts, config, plan = made
    row = mine(rows_of(made))
    assert (row.method, row.batch_size) == (batching, 8)
    assert_counts(row, workload.of_training(texts.train, texts.groups, config, plan), made)


@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_flat_rows_are_the_micro_batches_without_padding(tokenizer: Any, batch_size: int) -> None:
    made = job(tokenizer)
    micros = batches.cut(made[0].train, "flat", tokens=2048)
    row = one(rows_of(made), "flat", batch_size)
    assert_counts(row, workload.of_micros(micros), made)
    assert row.padding == 0
    assert row.flat_gflop == row.gflop


@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_usual_rows_are_padded_to_the_longest_of_each_random_batch(
    tokenizer: Any, batch_size: int
) -> None:
    made = job(tokenizer, accumulation_steps=4)  # which changes nothing: batches are padded alone
    texts, config, _ = made
    shuffled = Schedule(
        texts.groups, size=batch_size, epochs=1, seed=config.seed, batching="padded"
    )
    steps = ([texts.train[n] for n in shuffled.step(k)] for k in range(shuffled.steps))
    row = one(rows_of(made), "longest", batch_size)
    assert_counts(row, workload.of_micros(map(batches.padded, steps)), made)


def test_rows_of_full_length_hold_max_seq_len_tokens_each(tokenizer: Any) -> None:
    made = job(tokenizer, "sentiment")
    number = len(made[0].train)
    row = one(rows_of(made), "max_length", 16)
    flat = one(rows_of(made), "flat", 16)
    assert row.processed == number * LONGEST
    assert row.useful == flat.useful
    pairs = number * LONGEST * (LONGEST + 1) / 2
    labels = sum(e["labelled"] for e in made[0].train)
    counts = Counts(useful=flat.useful, processed=row.processed, pairs=pairs, labels=labels)
    assert_counts(row, counts, made)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=300),
    batch_size=st.integers(1, 70),
    seed=st.integers(0, 99),
)
def test_batches_of_like_length_are_those_of_transformers(
    lengths: list[int], batch_size: int, seed: int
) -> None:
    theirs = LengthGroupedSampler(
        batch_size, lengths=lengths, generator=torch.Generator().manual_seed(seed)
    )
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).tolist()
    assert padding.by_length(order, lengths, batch_size) == list(theirs)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 1), (8, 4), (64, 1)])
def test_grouped_rows_pad_as_much_as_the_sampler_of_transformers_does(
    tokenizer: Any, batch_size: int, accumulation: int
) -> None:
    made = job(tokenizer, accumulation_steps=accumulation)
    lengths = [len(e["input_ids"]) for e in made[0].train]
    found = one(rows_of(made), "grouped", batch_size)

    def processed(seed: int) -> int:
        order = list(
            LengthGroupedSampler(
                batch_size * accumulation,
                lengths=lengths,
                generator=torch.Generator().manual_seed(seed),
            )
        )
        parts = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
        return sum(len(part) * max(lengths[n] for n in part) for part in parts)

    theirs = [processed(seed) for seed in range(20)]
    assert 0.99 * min(theirs) <= found.processed <= 1.01 * max(theirs)


@pytest.mark.parametrize("task", ["qa", "sentiment", "summarization"])
def test_from_full_rows_to_shared_prompts_each_method_processes_less(
    tokenizer: Any, task: str
) -> None:
    rows = rows_of(job(tokenizer, task))
    for size in padding.SIZES:
        full, longest, flat, tree = (
            one(rows, method, size).gflop for method in ("max_length", "longest", "flat", "tree")
        )
        assert full > longest >= flat >= tree
        assert longest >= one(rows, "grouped", size).gflop * 0.98  # by chance a bit more
        assert one(rows, "grouped", size).gflop >= flat


def test_a_batch_of_one_has_neither_padding_nor_a_shared_prompt(tokenizer: Any) -> None:
    rows = rows_of(job(tokenizer))
    for method in ("longest", "grouped", "flat", "tree"):
        assert one(rows, method, 1).padding == 0
    assert one(rows, "tree", 2).padding < -0.2


def test_trees_cut_from_a_part_of_the_examples_stand_for_all(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job(tokenizer)
    whole = {size: one(rows_of(made), "tree", size) for size in (2, 4, 16, 32)}
    monkeypatch.setattr(padding, "SAMPLED", 96)
    for size, row in whole.items():
        part = one(rows_of(made), "tree", size)
        assert part.useful == row.useful
        assert part.processed != row.processed
        assert part.gflop == pytest.approx(row.gflop, rel=0.1)


def test_shared_prompts_are_found_in_steps_longer_than_the_jobs(tokenizer: Any) -> None:
    texts, config, plan = job(tokenizer, batch_size=1, batching="tree")
    assert plan.micro_batch_tokens == LONGEST
    large = one(rows_of((texts, config, plan)), "tree", 16)
    usual = one(rows_of(job(tokenizer, batching="tree")), "tree", 16)
    assert large.processed == usual.processed
    config = replace(config, micro_batch_tokens=LONGEST)
    assert one(rows_of((texts, config, plan)), "tree", 16).processed > large.processed


def test_rows_that_do_not_fit_are_not_taken_together(tokenizer: Any) -> None:
    texts, config, plan = job(tokenizer, batching="padded", batch_size=8)
    tight = replace(plan, micro_batch_size=2)
    rows = rows_of((texts, config, tight))
    assert_counts(
        mine(rows), workload.of_training(texts.train, texts.groups, config, tight),
        (texts, config, tight),
    )  # fmt: skip
    assert mine(rows).processed < one(rows, "longest", 8).processed


def test_only_a_job_that_pads_has_a_row_for_its_own_way_to_pad(tokenizer: Any) -> None:
    assert "padded" not in {row.method for row in rows_of(job(tokenizer))}
    assert "padded" in {row.method for row in rows_of(job(tokenizer, batching="padded"))}


def test_sizes_above_the_number_of_examples_are_left_out_but_not_the_jobs(tokenizer: Any) -> None:
    texts, config, plan = job(tokenizer, batch_size=12)
    few = replace(texts, train=texts.train[:5], groups=texts.groups[:5])
    rows = rows_of((few, config, plan))
    assert sorted({row.batch_size for row in rows}) == [1, 2, 4, 12]
    assert mine(rows).batch_size == 12


def test_epochs_are_counted_as_often_as_they_come(tokenizer: Any) -> None:
    once, thrice = rows_of(job(tokenizer)), rows_of(job(tokenizer, epochs=3))
    assert [row.gflop for row in thrice] == pytest.approx([3 * row.gflop for row in once])
    assert [row.useful for row in thrice] == [3 * row.useful for row in once]
    assert [row.padding for row in thrice] == pytest.approx([row.padding for row in once])


def test_grams_are_operations_at_their_price_and_unknown_without_one(tokenizer: Any) -> None:
    made = job(tokenizer)
    for free, priced in zip(rows_of(made), rows_of(made, g_per_gflop=0.5), strict=True):
        assert free.emissions_g is None
        assert priced.emissions_g == priced.spent == 0.5 * priced.gflop
        assert free.spent == free.gflop
        assert priced.spent_flat == pytest.approx(0.5 * priced.flat_gflop)
        assert priced.extra == pytest.approx(priced.spent - priced.spent_flat)


def test_padding_costs_more_where_attention_is_more_of_the_work(tokenizer: Any) -> None:
    texts, config, plan = job(tokenizer)
    wide = replace(SHAPE, hidden=16, mlp=16)  # whose attention is nearly all that it does
    ratios = []
    for shape in (SHAPE, wide):
        row = one(xray(texts, shape, config, plan, max_seq_len=LONGEST), "max_length", 8)
        ratios.append(row.gflop / row.flat_gflop)
    tokens = row.processed / row.useful
    assert ratios[0] < ratios[1]
    assert ratios[1] > tokens  # as each token of a long row has more to attend to


@pytest.mark.parametrize("task", ["qa", "sentiment"])
@pytest.mark.parametrize("price", [None, 1e-6, 1e-3])
def test_a_report_fits_a_terminal_and_marks_the_job(
    tokenizer: Any, task: str, price: float | None
) -> None:
    rows = rows_of(job(tokenizer, task, batching="flat", batch_size=12), g_per_gflop=price)
    lines = padding.report(rows).splitlines()
    assert max(map(len, lines)) <= 80
    (line,) = (line for line in lines if line.startswith("flat*"))
    assert line.split()[1:] == ["0"] * 9  # eight sizes, and what padding costs
    assert any("12*" in line for line in lines)
    assert any(line.startswith("below 0 where") for line in lines)
    assert ("CO2e" in padding.sentence(rows)) == (price is not None)
    assert ("FLOP" in " ".join(lines[:3])) == (price is None)


def row(method: str, gflop: float, *, price: float | None = 0.01, mine: bool = False) -> Row:
    return Row(
        method=method,
        batch_size=8,
        useful=90.0,
        processed=100.0,
        gflop=gflop,
        flat_gflop=1000.0,
        emissions_g=None if price is None else price * gflop,
        mine=mine,
    )


def test_what_is_said_names_the_jobs_the_best_and_the_usual_way() -> None:
    rows = [row("longest", 3000.0), row("flat", 1000.0, mine=True), row("tree", 500.0)]
    assert padding.sentence(rows) == (
        "At batch size 8 this job's training (flat) comes to 10 g CO2e; tree would take least, "
        "5 g CO2e (-50%); padded to the longest of a batch, as is usual, 30 g CO2e (+200%). "
        "Modelled, at one price for each GFLOP."
    )
    assert "comes to 10 g CO2e at the price of t4; " in padding.sentence(rows, "t4")
    assert "at the price of a100-80" in " ".join(padding.report(rows, 80, "a100-80").split())


def test_what_is_said_of_the_best_job_names_no_better_one() -> None:
    rows = [row("longest", 1000.0, price=None), row("tree", 1000.0, price=None, mine=True)]
    assert padding.sentence(rows) == (
        "At batch size 8 this job's training (tree) comes to 1 TFLOP, and no other way takes "
        "less; padded to the longest of a batch, as is usual, the same. Modelled."
    )


@pytest.mark.parametrize(
    ("grams", "unit", "shown"),
    [(2500.0, "kg", "2.5"), (1.5, "g", "1.5"), (0.02, "mg", "20"), (1e-9, "µg", "0.001")],
)
def test_the_unit_is_one_that_a_reader_would_choose(grams: float, unit: str, shown: str) -> None:
    rows = [row("longest", 1.0, price=grams), row("flat", 1.0, price=grams, mine=True)]
    name, factor = padding.unit_of(rows)
    assert (name, padding.figure(grams * factor)) == (unit, shown)


def test_large_figures_are_written_whole() -> None:
    assert padding.figure(1234.56) == "1,235"
    assert padding.figure(-0.012345) == "-0.0123"


def test_an_order_of_like_lengths_holds_each_example_once() -> None:
    order = random.Random(0).sample(range(1000), 1000)
    lengths = [random.Random(n).randrange(1, 90) for n in range(1000)]
    found = padding.by_length(order, lengths, 8)
    assert sorted(found) == list(range(1000))
    assert lengths[found[0]] == max(lengths)
