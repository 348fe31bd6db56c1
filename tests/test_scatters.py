"""A comparison's points: every run is there, fronts are fronts, lines are where they say."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from figures import drawn
from matplotlib.collections import PathCollection
from matplotlib.text import Text
from synthetic import Effects, grid, searched

from green_tune import canvas, looks, rates, scatters
from green_tune.looks import Drawn
from green_tune.results import RunRecord, front

RECORDS = grid(0, Effects())
LINKS = {record.run_id: f"http://a/{record.run_id}" for record in RECORDS}
KG, RATE, HOURS, LOSS = "emissions_kg", "emissions_rate_kg_per_h", "runtime_h", "val_loss"


def shown(found: Drawn | None) -> tuple[Any, str]:
    assert found is not None
    return drawn(found[0]), found[1]


def places(axes: Any) -> list[tuple[float, float]]:
    """Of runs: what is drawn around them has no fill."""
    marks: list[Any] = [m for m in axes.collections if isinstance(m, PathCollection)]
    return [(x, y) for m in marks if m.get_facecolor().size for x, y in m.get_offsets()]


def with_metrics(record: RunRecord, **metrics: float) -> RunRecord:
    return replace(record, metrics={**record.metrics, **metrics})


def labels(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize(("at", "name"), [(0, KG), (1, HOURS)])
def test_each_run_is_at_its_rate_on_both_sides_and_is_a_link(at: int, name: str) -> None:
    figure, _ = shown(rates.rates_figure(RECORDS, "s", LINKS))
    axes, factor = figure.axes[at], 1000 if name == KG else 1
    expected = [(factor * r.metrics[name], 1000 * r.metrics[RATE]) for r in RECORDS]
    assert np.array(sorted(places(axes))) == pytest.approx(np.array(sorted(expected)))
    assert sorted(u for m in axes.collections for u in m.get_urls()) == sorted(LINKS.values())


def test_lines_of_equal_runtime_and_emissions_are_where_they_say() -> None:
    figure, _ = shown(rates.rates_figure(RECORDS, "s"))
    left, right = figure.axes
    assert left.lines
    assert right.lines
    for line, text in zip(left.lines, left.texts, strict=True):
        assert text.get_text().endswith(" h")
        x, y = line.get_xydata().T
        assert x / y == pytest.approx(np.full(len(x), float(text.get_text().split()[0])))
    for line, text in zip(right.lines, right.texts, strict=True):
        assert text.get_text().endswith(" g")
        x, y = line.get_xydata().T
        assert x * y == pytest.approx(np.full(len(x), float(text.get_text().split()[0])))


@pytest.mark.parametrize(
    "records",
    [RECORDS, RECORDS[:20], [*RECORDS, *searched(1, Effects(), 300)],
     [with_metrics(r, **{KG: r.metrics[KG] * 1e-6, RATE: r.metrics[RATE] * 1e-6})
      for r in RECORDS]],
)  # fmt: skip
def test_no_value_of_a_line_lies_on_another_on_a_run_or_outside(
    records: Sequence[RunRecord],
) -> None:
    figure, _ = shown(rates.rates_figure(records, "s"))
    for axes in figure.axes:
        boxes = [Text.get_window_extent(text) for text in axes.texts]
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
        assert all(axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 for box in boxes)
        assert all(axes.bbox.y0 < box.y0 and box.y1 < axes.bbox.y1 for box in boxes)
        pixels = axes.transData.transform(places(axes))
        assert not any(box.contains(x, y) for box in boxes for x, y in pixels)


def test_a_value_stands_where_its_line_is_farthest_from_all_or_nowhere() -> None:
    diagonal = np.column_stack([np.linspace(0, 1, 101)] * 2)
    assert rates._free(diagonal, np.array([[0.8, 0.8]])) == 11  # the first that is not at an edge
    assert rates._free(diagonal, np.array([[0.2, 0.2]])) == 89
    crowd = np.stack(np.meshgrid(*[np.linspace(0, 1, 21)] * 2), axis=-1).reshape(-1, 2)
    assert rates._free(diagonal, crowd) is None
    assert rates._free(diagonal + 2, crowd) is None


def test_a_run_alone_has_no_lines_and_none_in_the_legend() -> None:
    figure, words = shown(rates.rates_figure(RECORDS[:1], "s"))
    assert not any(axes.lines for axes in figure.axes)
    assert labels(figure) == ["T4"]
    kg, hours, rate = (RECORDS[0].metrics[name] for name in (KG, HOURS, RATE))
    assert words == f"T4 {1000 * rate:.3g} g per h, {hours:.3g} h, {1000 * kg:.3g} g (one run)."


def test_seconds_and_micrograms_are_called_so() -> None:
    small = [
        with_metrics(r, **{KG: 1e-7 + n * 1e-9, HOURS: 1e-4 + n * 1e-6, RATE: 1e-3})
        for n, r in enumerate(RECORDS)
    ]
    figure, words = shown(rates.rates_figure(small, "s"))
    left, right = figure.axes
    assert left.get_xlabel() == "emissions (µg CO2e)"
    assert right.get_xlabel() == "runtime (s)"
    assert " s, " in words
    for draw in (scatters.front_figure, scatters.fronts_figure):
        figure, words = shown(draw(small, "s"))
        assert "emissions (µg CO2e)" in {axes.get_xlabel() for axes in figure.axes}
        assert "at 100 µg" in words


def test_rates_are_of_runs_that_have_all_three_above_nothing() -> None:
    broken = [with_metrics(RECORDS[0], **{name: 0.0}) for name in (KG, RATE, HOURS)]
    assert rates.rates_figure(broken, "s") is None
    figure, _ = shown(rates.rates_figure([*broken, RECORDS[1]], "s"))
    assert len(places(figure.axes[0])) == 1


def test_the_front_of_a_task_is_by_bits_per_byte_where_it_has_several_models() -> None:
    figure, words = shown(scatters.front_figure(RECORDS, "s", LINKS))
    assert [axes.get_title() for axes in figure.axes] == ["qa", "sentiment", "summarization"]
    for axes in figure.axes:
        mine = [r for r in RECORDS if r.params["task"] == axes.get_title()]
        pairs = [(1000 * r.metrics[KG], r.metrics["val_bits_per_byte"]) for r in mine]
        assert axes.get_ylabel() == "bits per byte"
        assert np.array(sorted(places(axes))) == pytest.approx(np.array(sorted(pairs)))
        best = sorted(front(pairs, lambda pair: pair))
        assert axes.lines[0].get_xydata() == pytest.approx(np.array(best))
        assert f"{len(best)} of 18 runs on the front" in words


def test_the_front_of_one_model_is_by_its_loss_and_there_is_no_second_figure() -> None:
    one = grid(0, Effects(), models=["gemma-2b"], tasks=["qa"])
    figure, _ = shown(scatters.front_figure(one, "s"))
    assert figure.axes[0].get_ylabel() == "loss (nats per token)"
    assert scatters.fronts_figure(one, "s") is None


def test_each_model_and_task_has_its_front_by_loss() -> None:
    figure, words = shown(scatters.fronts_figure(RECORDS, "s"))
    assert [axes.get_title() for axes in figure.axes][:2] == ["gemma-2b, qa", "llama-2-7b, qa"]
    assert len(figure.axes) == 6
    assert sum(len(places(axes)) for axes in figure.axes) == len(RECORDS)
    mine = [r for r in RECORDS if r.params["task"] == "qa" and r.tags["base_model"] == "gemma-2b"]
    best = min(mine, key=lambda r: r.metrics[LOSS])
    least = f"{best.metrics[LOSS]:.3g} at {1000 * best.metrics[KG]:.3g} g"
    assert f"gemma-2b, qa: least loss (nats per token) {least}" in words


def test_a_legend_has_no_model_of_which_there_is_no_point() -> None:
    no_bits = [
        replace(r, metrics={k: v for k, v in r.metrics.items() if k != "val_bits_per_byte"})
        if r.tags["base_model"] == "llama-2-7b" else r for r in RECORDS
    ]  # fmt: skip
    figure, _ = shown(scatters.front_figure(no_bits, "s"))
    assert "gemma-2b" in labels(figure)
    assert "llama-2-7b" not in labels(figure)


def test_a_training_that_diverged_is_at_the_edge_and_presses_nothing_flat() -> None:
    one = grid(0, Effects(), models=["gemma-2b"], tasks=["qa"])
    wild = replace(with_metrics(one[0], val_loss=500.0), run_id="wild")
    figure, words = shown(scatters.front_figure([wild, *one], "s"))
    assert figure.axes[0].get_ylim()[1] < 4
    assert scatters.BEYOND in labels(figure)
    assert "of 10 runs" in words
    assert scatters.BEYOND not in labels(shown(scatters.front_figure(one, "s"))[0])


def test_more_blocks_than_panels_are_counted_in_words() -> None:
    many = [
        replace(r, run_id=f"{n}-{r.run_id}", tags={**r.tags, "base_model": f"m{n}"})
        for n in range(5)
        for r in RECORDS[:27]
    ]
    figure, words = shown(scatters.fronts_figure(many, "s"))
    assert len(figure.axes) == looks.MOST_PANELS
    assert "Not drawn: 3 blocks with fewest runs (m4 sentiment" in words
    assert "m4" not in labels(figure)


def test_losses_and_kilograms_that_are_far_apart_have_logarithmic_axes() -> None:
    one = grid(0, Effects(), models=["gemma-2b"], tasks=["qa"])
    one = [replace(r, run_id=f"{r.run_id}-{n}") for n in range(2) for r in one]
    far = [with_metrics(r, **{KG: 0.001 * 1.3**n, LOSS: 1.2**n}) for n, r in enumerate(one)]
    axes = shown(scatters.front_figure(far, "s"))[0].axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    axes = shown(scatters.front_figure(one, "s"))[0].axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")


def test_without_figures_there_is_no_scatter() -> None:
    bare = [replace(record, metrics={}) for record in RECORDS]
    for records in ([], bare):
        assert rates.rates_figure(records, "s") is None
        assert scatters.front_figure(records, "s") is None
        assert scatters.fronts_figure(records, "s") is None


def test_names_of_a_store_are_no_formulas() -> None:
    task, model = r"_$\frac{$", r"a$x_1$\b"
    one = grid(0, Effects(), models=["gemma-2b"], tasks=["qa"])
    records = [replace(r, params={**r.params, "task": task}) for r in one]
    other = [replace(r, tags={**r.tags, "base_model": model}) for r in records]
    records += [replace(r, run_id=f"{r.run_id}-2") for r in other]
    for draw in (rates.rates_figure, scatters.front_figure, scatters.fronts_figure):
        figure, _ = shown(draw(records, "s"))
        assert canvas.to_svg(figure, "a", themed=True)
    _, words = shown(scatters.fronts_figure(records, "s"))
    assert f"{model}, {task}: least" in words


def test_ten_thousand_runs_are_drawn_without_links_and_few_are_seen_among_them() -> None:
    some = searched(1, Effects(), 100)
    many = [replace(r, run_id=f"{n}-{r.run_id}") for n in range(100) for r in some]
    rare = grid(0, Effects(), models=["gemma-2b"], tasks=["qa"], gpus=["a100"])
    links = {record.run_id: "http://a" for record in [*many, *rare]}
    for draw in (rates.rates_figure, scatters.front_figure):
        figure, _ = shown(draw([*many, *rare], "s", links))
        assert len(places(figure.axes[0])) == 10_003
        svg = canvas.to_svg(figure, "a")
        assert "http://a" not in svg
        assert len(svg) < 1e6
        crowd, few = (m for m in figure.axes[0].collections if m.get_facecolor().size)
        assert few.get_sizes()[0] > crowd.get_sizes()[0]
        assert few.get_zorder() > crowd.get_zorder()
