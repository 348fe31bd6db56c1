"""Hyperparameters against results: each run beside its own block, and what a lower loss costs."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from figures import drawn
from synthetic import Effects, grid, searched

from green_tune import canvas, trends
from green_tune.document import Interval
from green_tune.looks import Drawn
from green_tune.results import RunRecord

RECORDS = searched(1, Effects(), 40)
RHO = Interval(estimate=-0.5, low=-0.7, high=-0.2, n=40)
RESPONSES = ("val_loss", "emissions_kg")


def values(records: Sequence[RunRecord]) -> dict[str, dict[str, float]]:
    return {name: {r.run_id: r.metrics[name] for r in records} for name in RESPONSES}


def shown(found: Drawn | None) -> tuple[Any, str]:
    assert found is not None
    return drawn(found[0]), found[1]


def labels(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def panel(figure: Any, name: str, response: int) -> Any:
    """The panel of a hyperparameter; 0 for the loss, 1 for emissions."""
    return [axes for axes in figure.axes if axes.get_xlabel() == name][response]


def heights(axes: Any) -> list[float]:
    return [y for marks in axes.collections for _, y in marks.get_offsets()]


def of(records: Sequence[RunRecord], **tags: str) -> list[RunRecord]:
    return [replace(r, run_id=f"{r.run_id}-{tags}", tags={**r.tags, **tags}) for r in records]


def test_each_run_is_beside_the_median_of_its_block() -> None:
    figure, _ = shown(trends.trends_figure(RECORDS, values(RECORDS), {}, "s"))
    assert len(figure.axes) == 12
    losses, kilograms = ([r.metrics[name] for r in RECORDS] for name in RESPONSES)
    middle = statistics.median(losses)
    assert sorted(heights(panel(figure, "epochs", 0))) == pytest.approx(
        sorted(loss - middle for loss in losses)
    )
    middle = statistics.median(kilograms)
    assert sorted(heights(panel(figure, "epochs", 1))) == pytest.approx(
        sorted(kg / middle for kg in kilograms)
    )


def test_the_line_goes_through_the_means_at_each_value() -> None:
    figure, _ = shown(trends.trends_figure(RECORDS, values(RECORDS), {}, "s"))
    middle = statistics.median(r.metrics["val_loss"] for r in RECORDS)
    x, y = panel(figure, "epochs", 0).lines[0].get_data()
    for epochs, mean in zip(x, y, strict=True):
        mine = [r.metrics["val_loss"] for r in RECORDS if float(r.params["epochs"]) == epochs]
        assert mean == pytest.approx(statistics.fmean(mine) - middle)
    assert list(x) == [1, 2, 3]


def test_ticks_are_in_the_hyperparameters_own_values() -> None:
    figure, _ = shown(trends.trends_figure(RECORDS, values(RECORDS), {}, "s"))
    ticks = {name: [t.get_text() for t in panel(figure, name, 0).get_xticklabels()]
             for name in ("batch size", "epochs")}  # fmt: skip
    assert ticks == {"batch size": ["2", "4", "8", "16", "32"], "epochs": ["1", "2", "3"]}


def test_correlations_are_above_their_panels_and_in_words() -> None:
    rhos = {("epochs", "val_loss"): RHO}
    figure, words = shown(trends.trends_figure(RECORDS, values(RECORDS), rhos, "s"))
    assert panel(figure, "epochs", 0).get_title(loc="left") == "ρ -0.50 (-0.70 to -0.20), 40 runs"
    assert words == "epochs and loss: ρ -0.50 (-0.70 to -0.20), 40 runs."
    assert "too few runs" in panel(figure, "epochs", 1).get_title(loc="left")


def test_a_correlation_that_is_not_known_is_said_to_be() -> None:
    unknown = Interval(estimate=math.nan, low=-1, high=1, n=2)
    _, words = shown(
        trends.trends_figure(RECORDS, values(RECORDS), {("epochs", "val_loss"): unknown}, "s")
    )
    assert words == "epochs and loss: too few runs for a correlation."


def test_a_legend_has_what_is_drawn_alone() -> None:
    fixed = grid(0, Effects(), models=["llama-2-7b"])
    records = [*RECORDS, *fixed]
    figure, _ = shown(trends.trends_figure(records, values(records), {}, "s"))
    assert labels(figure) == ["gemma-2b, qa"]
    both = [*RECORDS, *searched(2, Effects(), 9, model="llama-2-7b", task="sentiment")]
    figure, _ = shown(trends.trends_figure(both, values(both), {}, "s"))
    assert labels(figure) == ["gemma-2b", "llama-2-7b", "qa", "sentiment"]
    tasks = [*RECORDS, *searched(2, Effects(), 9, task="sentiment")]
    figure, _ = shown(trends.trends_figure(tasks, values(tasks), {}, "s"))
    assert labels(figure) == ["qa", "sentiment"]


def test_nothing_is_drawn_where_nothing_varies_or_nothing_is_known() -> None:
    fixed = grid(0, Effects())
    assert trends.trends_figure(fixed, values(fixed), {}, "s") is None
    assert trends.trends_figure([], {}, {}, "s") is None
    assert trends.trends_figure(RECORDS, {"val_loss": {}}, {}, "s") is None
    assert trends.trends_figure(RECORDS[:1], values(RECORDS[:1]), {}, "s") is None


def test_only_runs_that_a_response_has_are_drawn() -> None:
    some = {"val_loss": {r.run_id: r.metrics["val_loss"] for r in RECORDS[:10]}}
    figure, words = shown(trends.trends_figure(RECORDS, some, {}, "s"))
    assert {len(heights(axes)) for axes in figure.axes} == {10}
    assert words.endswith("against loss, no correlation.")


def test_a_training_that_diverged_is_at_the_edge_and_it_is_said() -> None:
    wild = replace(RECORDS[0], metrics={**RECORDS[0].metrics, "val_loss": 900.0})
    records = [wild, *RECORDS[1:]]
    figure, _ = shown(trends.trends_figure(records, values(records), {}, "s"))
    axes = panel(figure, "epochs", 0)
    assert axes.get_ylim()[1] < 10
    assert len(heights(axes)) == 40
    assert "at its edge" in figure.legends[0].get_title().get_text()


def test_runs_are_links_and_more_models_than_can_be_told_apart_are_counted() -> None:
    links = {r.run_id: f"http://a/{r.run_id}" for r in RECORDS}
    figure, _ = shown(trends.trends_figure(RECORDS, values(RECORDS), {}, "s", links))
    urls = [url for marks in figure.axes[0].collections for url in marks.get_urls()]
    assert sorted(urls) == sorted(links.values())
    many = [r for n in range(8) for r in of(RECORDS, base_model=f"m{n}")]
    _, words = shown(trends.trends_figure(many, values(many), {}, "s"))
    assert "2 models with fewest runs (m6, m7)" in words


def test_ten_thousand_runs_are_drawn_without_links() -> None:
    many = [r for n in range(250) for r in of(RECORDS, n=str(n))]
    links = {r.run_id: "http://a" for r in many}
    figure, _ = shown(trends.trends_figure(many, values(many), {}, "s", links))
    assert len(heights(figure.axes[0])) == 10_000
    assert not any(url for axes in figure.axes for m in axes.collections for url in m.get_urls())


def test_names_of_a_store_are_no_formulas() -> None:
    records = [*of(RECORDS, base_model=r"_$\frac{$"), *of(RECORDS, base_model=r"a$x_1$\b")]
    figure, _ = shown(trends.trends_figure(records, values(records), {}, "s"))
    assert canvas.to_svg(figure, "a")
    name = r"_$\x_$"
    figure, words = shown(trends.marginal_figure({name: [(2.0, 1.0)]}, {}, "s"))
    assert canvas.to_svg(figure, "a")
    assert words == rf"{name}: 1 g at loss 2."


def test_prices_are_a_step_line_down_the_loss_with_the_bend_marked() -> None:
    prices = {"a": [(1.5, 4.0), (2.5, 1.0), (2.0, 2.0), (1.0, 0.0), (0.5, math.inf)]}
    figure, words = shown(trends.marginal_figure(prices, {"a": (1.9, 30.0)}, "s"))
    axes = figure.axes[0]
    (line,) = axes.lines
    assert line.get_drawstyle() == "steps-post"
    assert line.get_xydata().tolist() == [[2.5, 1.0], [2.0, 2.0], [1.5, 4.0]]
    assert axes.collections[0].get_offsets().tolist() == [[1.9, 2.0]]
    assert axes.get_xlim()[0] > axes.get_xlim()[1]
    assert words == "a: 1 g at loss 2.5, 4 g at loss 1.5, the bend at 1.9 after 30 g."


def test_prices_that_are_far_apart_have_a_logarithmic_axis_in_the_unit_of_their_middle() -> None:
    prices = {"a": [(3.0, 1e-7), (2.0, 4e-6), (1.0, 1e-4)]}
    figure, words = shown(trends.marginal_figure(prices, {"a": (2.0, 2e-3)}, "s"))
    assert figure.axes[0].get_ylabel() == "µg CO2e for the next 0.01 nats"
    assert figure.axes[0].get_yscale() == "log"
    assert words == "a: 0.1 µg at loss 3, 100 µg at loss 1, the bend at 2 after 2 mg."


def test_lines_that_cannot_be_told_apart_are_left_out_and_counted() -> None:
    prices = {f"line {n}": [(3.0 - k / 9, 1.0 + k) for k in range(20 - n)] for n in range(15)}
    figure, words = shown(trends.marginal_figure(prices, {}, "s"))
    lines = figure.axes[0].lines
    assert len(lines) == 12
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 12
    assert "Not drawn: 3 lines with fewest points (line 12, line 13, line 14)." in words


def test_without_prices_there_is_no_figure() -> None:
    assert trends.marginal_figure({}, {}, "s") is None
    assert trends.marginal_figure({"a": [], "b": [(1.0, 0.0)]}, {}, "s") is None
