"""What was forecast stands against what came, each quote once, with its interval and its kind."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from figures import drawn
from matplotlib.collections import LineCollection, PathCollection
from synthetic import Effects, grid, quoted, searched

from green_tune import canvas, forecasts, looks, outcomes, scoreboard
from green_tune.looks import Drawn
from green_tune.outcomes import UNITS, Figure, Outcome
from green_tune.results import RunRecord
from green_tune.scoreboard import Rolled

RUNS = [
    *quoted(0, searched(0, Effects(), 12), evidence="probe", factor=1.4),
    *quoted(1, grid(0, Effects()), evidence="table", off=0.3, factor=1.3),
]
LINKS = {record.run_id: f"http://a/{record.run_id}" for record in RUNS}


def known(records: list[RunRecord]) -> dict[Figure, list[Outcome]]:
    return {figure: outcomes.known(records, figure) for figure in UNITS}


def rolled(records: list[RunRecord]) -> dict[Figure, dict[str, list[Rolled]]]:
    return {figure: scoreboard.rolling(records, figure) for figure in UNITS}


def shown(found: Drawn | None) -> tuple[Any, str]:
    assert found is not None
    return drawn(found[0]), found[1]


def places(axes: Any) -> list[tuple[float, float]]:
    marks: list[Any] = [m for m in axes.collections if isinstance(m, PathCollection)]
    return [(x, y) for m in marks for x, y in m.get_offsets()]


def bars(axes: Any) -> list[Any]:
    lines = [each for each in axes.collections if isinstance(each, LineCollection)]
    return [segment for line in lines for segment in line.get_segments()]


def labels(figure: Any) -> list[str]:
    return [text.get_text().strip() for text in figure.legends[0].get_texts()]


def test_each_quote_stands_at_what_it_said_and_what_came_and_is_a_link() -> None:
    figure, _ = shown(forecasts.quotes_figure(known(RUNS), "s", LINKS))
    energy, runtime = figure.axes
    wh = [(r.metrics["quote.energy_kwh"], r.metrics["energy_kwh"]) for r in RUNS]
    hours = [(r.metrics["quote.runtime_h"], r.metrics["runtime_h"]) for r in RUNS]
    name, factor = looks.unit([y for _, y in wh], looks.ENERGY)
    assert energy.get_xlabel() == f"energy quoted ({name})"
    assert np.array(sorted(places(energy))) == pytest.approx(factor * np.array(sorted(wh)))
    assert np.array(sorted(places(runtime))) == pytest.approx(np.array(sorted(hours)))
    urls = [url for mark in energy.collections for url in mark.get_urls() or [] if url]
    assert sorted(urls) == sorted(LINKS.values())


def test_a_bar_crosses_the_diagonal_exactly_where_the_interval_held() -> None:
    figure, _ = shown(forecasts.quotes_figure(known(RUNS), "s"))
    held = [each.held for each in known(RUNS)["energy"]]
    crossing = [start[0] <= start[1] <= end[0] for start, end in bars(figure.axes[0])]
    assert len(crossing) == len(RUNS)
    assert crossing.count(True) == held.count(True)
    assert 0 < crossing.count(True) < len(RUNS)
    assert forecasts.BARS in figure.legends[0].get_title().get_text()


def test_far_apart_figures_stand_on_logarithmic_axes_with_the_diagonal_through_both() -> None:
    figure, _ = shown(forecasts.quotes_figure(known(RUNS), "s"))
    for axes in figure.axes:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert axes.get_xlim() == axes.get_ylim() == tuple(axes.lines[0].get_xdata())
        assert list(axes.lines[0].get_xdata()) == list(axes.lines[0].get_ydata())


def test_kinds_of_evidence_look_the_same_whichever_others_there_are() -> None:
    alone, _ = shown(forecasts.quotes_figure(known(RUNS[12:]), "s"))
    both, _ = shown(forecasts.quotes_figure(known(RUNS), "s"))
    assert labels(alone) == ["the table of GPUs", "as quoted"]
    assert labels(both) == ["a probe", "the table of GPUs", "as quoted"]
    colours = [figure.legends[0].legend_handles[-2].get_color() for figure in (alone, both)]
    assert colours[0] == colours[1]


def test_a_figure_that_nobody_quoted_has_no_panel() -> None:
    odd = [replace(r, tags={**r.tags, "energy_valid": "false"}) for r in RUNS]
    for found in (
        forecasts.quotes_figure(known(odd), "s"),
        forecasts.rolling_figure(rolled(odd), "s"),
    ):
        figure, words = shown(found)
        assert len(figure.axes) == 1
        assert "energy" not in words


def test_nothing_is_drawn_without_outcomes_and_no_course_of_one() -> None:
    assert forecasts.quotes_figure(known([]), "s") is None
    assert forecasts.rolling_figure(rolled([]), "s") is None
    assert forecasts.rolling_figure(rolled(RUNS[:1]), "s") is None
    figure, words = shown(forecasts.quotes_figure(known(RUNS[:1]), "s"))
    assert len(places(figure.axes[0])) == 1
    assert words.startswith("a probe (energy): the actual figure was ")


def test_the_course_is_each_error_and_the_rolling_median_with_both_aims() -> None:
    figure, words = shown(forecasts.rolling_figure(rolled(RUNS), "s"))
    axes = figure.axes[0]
    found = rolled(RUNS)["energy"]
    every = [(p.number, 100 * max(p.off, 0.001)) for some in found.values() for p in some]
    assert np.array(sorted(places(axes))) == pytest.approx(np.array(sorted(every)))
    lines = [list(line.get_ydata()) for line in axes.lines]
    for some in found.values():
        assert [pytest.approx(100 * p.median) for p in some] in lines
    assert [10, 10] in lines
    assert [20, 20] in lines
    low, high = axes.get_ylim()
    assert low < 10
    assert high > 20
    assert labels(figure)[-2:] == list(forecasts.AIMS.values())
    last = found["probe"][-1]
    said = f"energy by a probe: {scoreboard.percent(last.median)} % off in the median of the last"
    assert (
        f"{said} 10 of 12, {scoreboard.percent(found['probe'][9].median)} % of the first" in words
    )


def test_a_quote_that_was_exact_is_drawn_all_the_same() -> None:
    exact = [replace(r, metrics={**r.metrics, "quote.energy_error": 0.0}) for r in RUNS]
    figure, words = shown(forecasts.rolling_figure(rolled(exact), "s"))
    assert {y for _, y in places(figure.axes[0])} == {100 * forecasts.LEAST}
    assert "energy by a probe: 0 % off" in words


def test_a_crowd_of_quotes_has_no_intervals_and_says_so() -> None:
    many = [replace(r, run_id=f"{n}-{r.run_id}") for n in range(7) for r in RUNS]
    assert len(many) > looks.LINKED
    figure, _ = shown(forecasts.quotes_figure(known(many), "s"))
    assert bars(figure.axes[0]) == []
    assert forecasts.CROWD in figure.legends[0].get_title().get_text()


def test_a_forecast_has_its_diagonal_and_how_far_off_it_was() -> None:
    rows = [("a", 10.0, 9.0, "GiB"), ("a", 10.0, 12.0, "GiB"), ("b", 4.0, 2.0, "h")]
    figure, words = shown(forecasts.forecast_figure(rows, "s"))
    gib, hours = figure.axes
    assert sorted(places(gib)) == [(10, 9), (10, 12)]
    assert places(hours) == [(4, 2)]
    assert gib.get_xlim() == gib.get_ylim() == (gib.lines[0].get_xdata()[0],
                                                gib.lines[0].get_xdata()[1])  # fmt: skip
    assert words == (
        "a (GiB): the actual figure was 1.05 times the forecast in the median of 2 (0.90 to 1.20); "
        "b (h): the actual figure was 0.50 times the forecast."
    )


def test_a_forecast_of_nothing_is_said_and_none_is_drawn_of_no_rows() -> None:
    assert forecasts.forecast_figure([], "s") is None
    assert forecasts.forecast_figure([("a", float("nan"), 1.0, "h")], "s") is None
    _, words = shown(forecasts.forecast_figure([("a", 0.0, 0.0, "h")], "s"))
    assert words == "h: forecast 0 for 1."


def test_names_of_a_store_are_no_formulas() -> None:
    rows = [(r"$\x", 1.0, 1.0, r"$_{"), ("_b", 1.0, 2.0, r"$_{")]
    figure, words = shown(forecasts.forecast_figure(rows, "s"))
    assert canvas.to_png(figure)
    assert words.startswith(r"$\x ($_{)")


@pytest.mark.parametrize("count", [2, 9, 10, 11])
def test_few_quotes_have_a_rolling_error_in_words_too(count: int) -> None:
    some = quoted(0, searched(0, Effects(), 12), evidence="probe", factor=1.4)[:count]
    _, words = shown(forecasts.rolling_figure(rolled(some), "s"))
    assert f"of {count}" in words
    assert ("of the first 10" in words) == (count > 10)
