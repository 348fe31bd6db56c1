"""A comparison's bars: their heights are means, every run is there, and words say the same."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from figures import drawn
from matplotlib.collections import PathCollection
from matplotlib.container import BarContainer
from synthetic import Effects, grid, run, searched

from green_tune import canvas, charts, efficiency, looks
from green_tune.blocks import gpu, group, panel
from green_tune.looks import Drawn
from green_tune.results import RunRecord

RECORDS = grid(0, Effects())
LINKS = {record.run_id: f"http://a/{record.run_id}" for record in RECORDS}


def shown(found: Drawn | None) -> tuple[Any, str]:
    assert found is not None
    return drawn(found[0]), found[1]


def kilograms(records: Sequence[RunRecord]) -> list[float]:
    return [record.metrics["emissions_kg"] for record in records]


def dots(figure: Any) -> list[float]:
    """Heights of all runs."""
    marks = [m for axes in figure.axes for m in axes.collections]
    clouds: list[Any] = [m for m in marks if isinstance(m, PathCollection)]
    return [y for cloud in clouds for _, y in cloud.get_offsets()]


def bars(axes: Any) -> list[Any]:
    return [bar for c in axes.containers if isinstance(c, BarContainer) for bar in c]


def scaled(records: Sequence[RunRecord], by: float) -> list[RunRecord]:
    names = ("emissions_kg", "energy_kwh", "energy_gpu_kwh", "energy_low_kwh", "energy_high_kwh")
    return [
        replace(r, metrics={**r.metrics, **{name: r.metrics[name] * by for name in names}})
        for r in records
    ]


def hostile(records: Sequence[RunRecord]) -> list[RunRecord]:
    return [
        replace(
            r,
            name=r"$\bad{",
            params={**r.params, "task": rf"_{r.params['task']}\_$^2$"},
            tags={**r.tags, "base_model": f"a$x_1$\\frac{{{r.tags['base_model']}", "pue": "1.0"},
        )
        for r in records
    ]


def labels(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_bar_is_as_high_as_the_mean_of_its_runs_in_grams() -> None:
    figure, _ = shown(charts.emissions_figure(RECORDS, "s"))
    assert [axes.get_title() for axes in figure.axes] == ["qa", "sentiment", "summarization"]
    for axes in figure.axes:
        mine = [r for r in RECORDS if r.params["task"] == axes.get_title()]
        cells = group(mine, lambda r: (r.tags["base_model"], gpu(r))).values()
        means = [1000 * statistics.fmean(kilograms(runs)) for runs in cells]
        assert [bar.get_height() for bar in bars(axes)] == pytest.approx(means)


def test_whiskers_are_the_interval_of_the_mean() -> None:
    figure, _ = shown(charts.emissions_figure(RECORDS, "s"))
    groups = [c for c in figure.axes[0].containers if isinstance(c, BarContainer)]
    whiskers: Any = groups[0].errorbar
    low, high = whiskers.lines[2][0].get_segments()[0][:, 1]
    mine = [r for r in RECORDS if (r.params["task"], gpu(r)) == ("qa", "t4")][:3]
    mean, half = looks.interval([1000 * kg for kg in kilograms(mine)])
    assert (low, high) == pytest.approx((mean - half, mean + half))


def test_two_runs_have_no_whiskers_and_one_has_no_bar() -> None:
    figure, _ = shown(charts.emissions_figure(grid(0, Effects(), seeds=2), "s"))
    assert "Whiskers" not in figure.legends[0].get_title().get_text()
    figure, words = shown(charts.emissions_figure(RECORDS[:1], "s"))
    assert not bars(figure.axes[0])
    assert dots(figure) == pytest.approx([1000 * kilograms(RECORDS)[0]])
    assert words == f"T4 {1000 * kilograms(RECORDS)[0]:.3g} g for sentiment on gemma-2b."


@pytest.mark.parametrize("draw", [charts.emissions_figure, charts.tasks_figure])
def test_every_run_has_one_dot_that_is_a_link(draw: Any) -> None:
    figure, _ = shown(draw(RECORDS, "s", LINKS))
    assert sorted(dots(figure)) == pytest.approx(sorted(1000 * kg for kg in kilograms(RECORDS)))
    urls = [
        url for axes in figure.axes for m in axes.collections for url in m.get_urls() or [] if url
    ]
    assert sorted(urls) == sorted(LINKS.values())


def test_words_say_the_means() -> None:
    _, words = shown(charts.tasks_figure(RECORDS, "s"))
    mine = [r for r in RECORDS if r.params["task"] == "qa" and r.tags["base_model"] == "gemma-2b"]
    mean = 1000 * statistics.fmean(kilograms(mine))
    assert f"qa: gemma-2b {mean:.3g} g (mean of 9)" in words
    assert "Runs on T4, L4, A100." in words


def test_kilograms_that_are_far_apart_have_a_logarithmic_axis_and_it_is_said() -> None:
    far = [*RECORDS, *scaled(grid(1, Effects(), models=["llama-2-7b"]), 100)]
    figure, _ = shown(charts.emissions_figure(far, "s"))
    assert {axes.get_yscale() for axes in figure.axes} == {"log"}
    assert charts.ON_LOG in figure.legends[0].get_title().get_text()
    near, _ = shown(charts.emissions_figure(RECORDS, "s"))
    assert {axes.get_yscale() for axes in near.axes} == {"linear"}
    assert all(axes.get_ylim()[0] == 0 for axes in near.axes)


@pytest.mark.parametrize("draw", [charts.emissions_figure, charts.tasks_figure])
def test_tenths_of_milligrams_are_in_micrograms(draw: Any) -> None:
    figure, words = shown(draw(scaled(RECORDS, 1e-6), "s"))
    assert "µg" in words
    axis = figure._supylabel.get_text() if figure._supylabel else figure.axes[0].get_ylabel()
    assert axis == "emissions (µg CO2e)"


def test_what_there_is_no_room_for_is_said_in_the_figure_and_in_words() -> None:
    many = [replace(r, tags={**r.tags, "base_model": f"m{n}"}) for n in range(8) for r in RECORDS]
    for draw in (charts.emissions_figure, charts.tasks_figure, charts.ranking_figure):
        figure, words = shown(draw(many, "s"))
        assert "2 models with fewest runs (m6, m7)" in words
        assert "2 models with fewest runs" in figure.legends[0].get_title().get_text()


def test_the_least_energy_has_the_first_rank_by_each_count() -> None:
    cheap = {"t4": 1.0, "l4": 2.0, "a100": 3.0}
    records = [
        replace(r, metrics={**r.metrics, "energy_gpu_kwh": cheap[gpu(r)] / 10,
                            "energy_kwh": 4.0 - cheap[gpu(r)]})
        for r in RECORDS
    ]  # fmt: skip
    figure, words = shown(charts.ranking_figure(records, "s"))
    assert len(figure.axes) == 6
    ranks = [t.get_text() for t in figure.axes[0].texts if t.get_text().isdigit()]
    assert ranks == ["1", "2", "3", "3", "2", "1"]
    assert "GPU alone T4 < L4 < A100, whole machine A100 < L4 < T4" in words


def test_equals_share_a_rank() -> None:
    records = [
        replace(r, metrics={**r.metrics, "energy_gpu_kwh": 0.1, "energy_kwh": 0.2}) for r in RECORDS
    ]
    figure, _ = shown(charts.ranking_figure(records, "s"))
    assert {t.get_text() for t in figure.axes[0].texts if t.get_text().isdigit()} == {"1"}


def test_what_is_modelled_of_the_whole_machine_is_hatched() -> None:
    figure, _ = shown(charts.ranking_figure(RECORDS, "s"))
    every = bars(figure.axes[0])
    hatched = [bar.get_height() for bar in every if bar.get_hatch()]
    plain = [bar.get_height() for bar in every if not bar.get_hatch()]
    whole = [h + p for h, p in zip(hatched, plain, strict=True)]
    assert [h / w for h, w in zip(hatched, whole, strict=True)] == pytest.approx(
        [0] * 3 + [0.3] * 3
    )


def test_gpus_are_ranked_where_there_are_two_that_have_one() -> None:
    assert charts.ranking_figure(grid(0, Effects(), gpus=["t4"]), "s") is None
    no_gpu = [replace(r, tags={**r.tags, "gpu_type": "cpu"},
                      metrics={**r.metrics, "energy_gpu_kwh": 0.0})
              for r in RECORDS if gpu(r) == "l4"]  # fmt: skip
    assert charts.ranking_figure([*no_gpu, *(r for r in RECORDS if gpu(r) == "t4")], "s") is None


def test_efficiency_has_a_bar_for_each_model_and_gpu_the_least_first_and_published_lines() -> None:
    values = {("b", "t4"): [30.0, 50.0], ("a", "l4"): [10.0], ("c", "t4"): [float("nan")]}
    figure, words = shown(efficiency.efficiency_figure(values, {"8 x H100": 6.9}, "s"))
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a on L4", "b on T4"]
    assert [bar.get_width() for bar in bars(axes)] == [10, 40]
    assert labels(figure) == ["8 x H100: 6.9 mJ"]
    assert words == "a on L4 10 mJ; b on T4 40 mJ. Published: 8 x H100: 6.9 mJ."


def test_more_bars_than_there_is_room_for_are_counted() -> None:
    values = {(f"m{n}", "t4"): [float(n + 1)] for n in range(efficiency.MOST_BARS + 3)}
    figure, words = shown(efficiency.efficiency_figure(values, {}, "s"))
    assert len(bars(figure.axes[0])) == efficiency.MOST_BARS
    assert "Not drawn: 3 that need more." in figure.legends[0].get_title().get_text()
    assert "Not drawn: 3 that need more." in words


def test_without_figures_there_is_no_chart() -> None:
    bare = [replace(record, metrics={"val_loss": 1.0}) for record in RECORDS]
    for records in ([], bare):
        assert charts.emissions_figure(records, "s") is None
        assert charts.tasks_figure(records, "s") is None
        assert charts.ranking_figure(records, "s") is None
    assert efficiency.efficiency_figure({}, {"x": 1.0}, "s") is None
    assert efficiency.efficiency_figure({("a", "t4"): [0.0]}, {}, "s") is None


def test_names_of_a_store_are_no_formulas() -> None:
    records = hostile(RECORDS)
    for draw in (charts.emissions_figure, charts.tasks_figure, charts.ranking_figure):
        figure, words = shown(draw(records, "s"))
        assert canvas.to_svg(figure, "a")
        assert r"_qa\_$^2$" in words
    values = {(r.tags["base_model"], r"$_{"): [1.0] for r in records}
    figure, words = shown(efficiency.efficiency_figure(values, {r"$\x": 2.0}, r"s"))
    assert r"on $_{ 1 mJ" in words


def test_ten_thousand_runs_are_drawn_as_pixels_without_links() -> None:
    dice = random.Random(0)
    some = [run(dice, Effects(), gpu=name) for name in ("t4", "l4") for _ in range(50)]
    many = [replace(r, run_id=f"{n}-{r.run_id}") for n in range(100) for r in some]
    links = {record.run_id: "http://a" for record in many}
    for draw in (charts.emissions_figure, charts.tasks_figure):
        figure, _ = shown(draw(many, "s", links))
        assert len(dots(figure)) == 10_000
        assert "http://a" not in canvas.to_svg(figure, "a")


def test_panels_are_by_task_and_data() -> None:
    other = [replace(r, tags={**r.tags, "data_digest": "other"}) for r in RECORDS[:9]]
    figure, _ = shown(charts.emissions_figure([*RECORDS, *other], "s"))
    assert len(figure.axes) == len({panel(r) for r in [*RECORDS, *other]}) == 4
    assert "sentiment (data other)" in [axes.get_title() for axes in figure.axes]


def test_no_label_of_a_panel_lies_on_a_legend() -> None:
    figure, _ = shown(charts.emissions_figure([*RECORDS, *searched(1, Effects(), 40)], "s"))
    legend = figure.legends[0].get_window_extent()
    assert all(legend.y1 <= axes.get_tightbbox().y0 for axes in figure.axes)
