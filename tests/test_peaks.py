"""A pace off the data sheet: its units, what it grows with, how near it is to public figures."""

from dataclasses import replace

import pytest

from benchmarks import backtests
from benchmarks.backtests import NODES, RECIPES, Row
from green_tune import peaks
from green_tune.effort import Work
from green_tune.hardware import GPUS, Device, Gpu
from green_tune.pace import total
from green_tune.shapes import SHAPES

LLAMA = SHAPES["llama-2-7b"]
A10G = backtests.gpu_of("a10g")
CPU = Device(kind="cpu", name="any", memory_gib=16)
# A little of everything: 1,000 examples of 200 tokens in micro-batches of four.
WORK = Work(
    layers=32,
    train_gflop=4 * 6.5 * 200_000,
    train_passes=250,
    train_steps=125,
    eval_gflop=2 * 6.5 * 20_000,
    eval_passes=25,
    quality_examples=100,
    useful_tokens=200_000,
    processed_tokens=200_000,
)


def train_s(gpu: Gpu, precision: str = "bf16", quantization: str = "none") -> float:
    return peaks.pace(gpu, precision, quantization, LLAMA).train_s(WORK)


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_every_gpu_of_the_table_has_a_pace(gpu: Gpu, precision: str, quantization: str) -> None:
    pace = peaks.pace(gpu, precision, quantization, LLAMA)
    spent = pace.phases(WORK)

    assert all(amount.runtime_h > 0 and amount.energy_kwh > 0 for amount in spent.values())
    assert set(spent) == {"setup", "train", "eval", "quality", "save"}
    # A share of the peak, never more, however much else there is.
    peak_s = (WORK.train_gflop + WORK.eval_gflop) / (1e3 * peaks.peak_tflops(gpu, precision))
    assert 3600 * total(spent).runtime_h > peak_s
    assert pace.loading_w < pace.busy_w < gpu.power_limit_w + peaks.HOST_CPU_W + peaks.HOST_RAM_W


def test_a_gflop_takes_its_share_of_the_peak_rate() -> None:
    half_peak = replace(A10G, bf16_tflops=35.0)

    one, other = (peaks.pace(gpu, "bf16", "none", LLAMA) for gpu in (A10G, half_peak))

    assert one.train_s_per_gflop * 70e3 * peaks.EFFICIENCY == pytest.approx(1)
    assert other.train_s_per_gflop == pytest.approx(2 * one.train_s_per_gflop)
    assert other.eval_s_per_gflop == other.train_s_per_gflop


def test_a_higher_peak_or_bandwidth_takes_less_time() -> None:
    faster = replace(A10G, bf16_tflops=140.0)
    wider = replace(A10G, bandwidth_gb_per_s=1200)

    assert train_s(faster) < train_s(A10G)
    assert train_s(wider) < train_s(A10G)


def test_a_higher_power_limit_draws_more_and_is_no_faster() -> None:
    hotter = replace(A10G, power_limit_w=600)
    one, other = (peaks.pace(gpu, "bf16", "none", LLAMA) for gpu in (A10G, hotter))

    assert other.busy_w - one.busy_w == pytest.approx(300 * (peaks.IDLE + peaks.BUSY))
    assert other.loading_w - one.loading_w == pytest.approx(300 * peaks.IDLE)
    assert other.train_s(WORK) == one.train_s(WORK)


def test_nf4_is_slower_and_the_more_so_the_less_there_is_in_a_pass() -> None:
    small, large = WORK, replace(WORK, train_passes=25)
    plain, packed = (peaks.pace(A10G, "bf16", how, LLAMA) for how in ("none", "nf4"))

    assert packed.train_s(small) / plain.train_s(small) > packed.train_s(large) / plain.train_s(
        large
    )
    assert packed.train_s(large) > plain.train_s(large)
    assert packed.eval_s(WORK) > plain.eval_s(WORK)
    assert packed.quality_s_per_example > plain.quality_s_per_example


def test_where_bf16_is_missing_it_counts_as_fp16() -> None:
    t4 = backtests.gpu_of("t4")

    assert peaks.peak_tflops(t4, "bf16") == peaks.peak_tflops(t4, "fp16") == 65
    assert peaks.peak_tflops(t4, "fp32") == 8.1
    assert train_s(t4, "fp32") > 4 * train_s(t4, "fp16")


def test_a_larger_model_takes_longer_to_load_and_to_ask() -> None:
    small, large = (
        peaks.pace(A10G, "bf16", "none", SHAPES[name]) for name in ("gemma-2b", "llama-2-7b")
    )

    assert small.setup_s < large.setup_s
    assert small.quality_s_per_example < large.quality_s_per_example


@pytest.mark.parametrize(("precision", "quantization"), [("int8", "none"), ("bf16", "int4")])
def test_what_the_table_does_not_know_is_refused(precision: str, quantization: str) -> None:
    with pytest.raises(ValueError, match="not in the table"):
        peaks.pace(A10G, precision, quantization, LLAMA)


def test_more_threads_take_less_time_and_more_watts() -> None:
    two, eight = (peaks.pace_of_cpu(CPU, LLAMA, threads) for threads in (2, 8))

    assert eight.train_s_per_gflop == pytest.approx(two.train_s_per_gflop / 4)
    assert eight.train_s(WORK) < two.train_s(WORK)
    assert eight.busy_w > two.busy_w
    assert two.train_s(WORK) > 10 * train_s(A10G)


@pytest.mark.parametrize(
    ("device", "threads"), [(CPU, 0), (Device(kind="cuda", name="T4", memory_gib=15), 2)]
)
def test_a_cpu_without_threads_and_a_gpu_are_no_cpu(device: Device, threads: int) -> None:
    with pytest.raises(ValueError, match="is no CPU"):
        peaks.pace_of_cpu(device, LLAMA, threads)


def test_the_constants_are_those_of_the_rows_that_they_are_fitted_to() -> None:
    for quantization in ("none", "nf4"):
        rows = [
            backtests.runtime(recipe)
            for recipe in RECIPES
            if recipe.fitted and recipe.quantization == quantization
        ]
        assert len(rows) == 2
        assert rows[0].ratio * rows[1].ratio == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", ["gemma-2b LoRA", "gemma-7b QLoRA"])
def test_rows_that_fitted_nothing_are_near(name: str) -> None:
    recipe = next(one for one in RECIPES if one.name == name)
    row = backtests.runtime(recipe)

    assert not row.fitted
    assert 0.8 < row.ratio < 1.25


def test_nine_of_ten_forecasts_are_within_the_assumed_factor() -> None:
    found = backtests.kinds()
    rows = [row for kind in backtests.FORECASTS for row in found[kind]]

    assert 1 < backtests.factor(rows) <= peaks.ASSUMED_FACTOR


def test_a_run_that_was_out_of_memory_is_not_said_to_fit() -> None:
    failed = [recipe for recipe in RECIPES if not recipe.minutes]

    assert [recipe.name for recipe in failed] == ["gemma-7b LoRA", "gemma-2-9b LoRA"]
    assert not any(backtests.fits(recipe)["one at a time"] for recipe in failed)
    assert backtests.fits(next(r for r in RECIPES if r.name == "gemma-7b QLoRA"))["ours"]


def test_a_projection_back_is_the_reciprocal_of_the_one_there() -> None:
    rows = {row.name: row for row in backtests.projections(backtests.node_time, NODES)}

    assert len(rows) == 6
    there, back = rows["h100 to b200"], rows["b200 to h100"]
    assert there.ours * back.ours == pytest.approx(1)
    assert there.published * back.published == pytest.approx(1)
    assert there.ours < 1


def test_texts_have_the_lengths_of_the_histogram_that_they_are_derived_from() -> None:
    tokens = backtests.lengths(52_002)

    assert sum(one <= 184.5 for one in tokens) == pytest.approx(42_516, rel=0.01)
    assert sum(one <= 309 for one in tokens) == pytest.approx(50_766, rel=0.01)
    assert max(tokens) == backtests.LONGEST


def test_rows_are_padded_to_the_longest_among_them() -> None:
    counts = backtests.padded([3, 5, 2], 2)

    assert (counts.useful, counts.processed, counts.passes) == (10, 12, 2)
    assert counts.pairs == 2 * 15 + 3


def test_a_row_that_fitted_a_constant_is_in_no_statistic() -> None:
    rows = [
        Row(name=str(ours), unit="h", published=1.0, ours=ours, source="", fitted=ours == 9)
        for ours in (9.0, 0.5, 1.1)
    ]

    assert backtests.errors(rows) == pytest.approx([0.1, 0.5])
    assert backtests.factor(rows) == pytest.approx(2)


def test_the_page_has_every_row_and_what_is_left_out() -> None:
    page = backtests.page()

    assert all(row.name in page for rows in backtests.kinds().values() for row in rows)
    assert all(what in page and why in page for what, why in backtests.LEFT_OUT)
    assert backtests.runtime(RECIPES[0]).fitted
    assert f"{RECIPES[0].name}*" in page
