"""What figures of many runs share: who is drawn how, what is left out, units and names."""

import math
import random
from dataclasses import replace

import pytest
from synthetic import Effects, grid, run

from green_tune import looks
from green_tune.results import RunRecord

RECORDS = grid(0, Effects())


def of(record: RunRecord, **tags: str) -> RunRecord:
    return replace(record, tags={**record.tags, **tags})


def test_models_are_in_the_order_of_their_size_and_gpus_of_their_power() -> None:
    shown = looks.cast(reversed(RECORDS), "emissions_kg")
    assert shown is not None
    assert list(shown.models) == ["gemma-2b", "llama-2-7b"]
    assert list(shown.gpus) == ["t4", "l4", "a100"]
    assert shown.left_out == ""


def test_a_model_of_unknown_size_comes_last() -> None:
    small = replace(of(RECORDS[0], base_model="a"), metrics={"emissions_kg": 1.0})
    shown = looks.cast([small, *RECORDS], "emissions_kg")
    assert shown is not None
    assert list(shown.models)[-1] == "a"


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_run_without_a_figure_is_not_drawn(bad: float | None) -> None:
    first, *others = RECORDS
    metrics = {k: v for k, v in first.metrics.items() if k != "emissions_kg"}
    broken = replace(first, metrics=metrics if bad is None else {**metrics, "emissions_kg": bad})
    shown = looks.cast([broken, *others], "emissions_kg")
    assert shown is not None
    assert list(shown.records) == others
    assert looks.cast([broken], "emissions_kg") is None
    assert looks.cast([], "emissions_kg") is None


def test_of_more_series_than_can_be_told_apart_those_with_most_runs_are_kept_and_it_is_said() -> (
    None
):
    records = [of(RECORDS[0], base_model=f"model-{n}") for n in range(9) for _ in range(9 - n)]
    shown = looks.cast(records)
    assert shown is not None
    assert list(shown.models) == [f"model-{n}" for n in range(looks.MOST)]
    assert shown.left_out == (
        "Not drawn: 3 models with fewest runs (model-6, model-7, model-8)."
    )  # fmt: skip


def test_each_series_has_a_colour_and_a_second_mark_of_its_own() -> None:
    found = looks.looks([str(n) for n in range(looks.MOST)]).values()
    for mark in ("colour", "hatch", "marker"):
        assert len({getattr(look, mark) for look in found}) == looks.MOST


def test_the_legend_has_what_is_drawn_alone() -> None:
    shown = looks.cast(RECORDS)
    assert shown is not None
    drawn = [record for record in RECORDS if looks.model(record) == "gemma-2b"]
    labels = [handle.get_label() for handle in shown.handles(drawn)]
    assert labels == ["T4", "L4", "A100", "gemma-2b"]


def test_where_one_of_gpu_and_model_does_not_vary_both_marks_are_of_the_other() -> None:
    shown = looks.cast(grid(0, Effects(), gpus=["t4"]))
    assert shown is not None
    marks = {shown.mark(record) for record in shown.records}
    assert marks == {(look.colour, look.marker) for look in shown.models.values()}
    assert [h.get_label() for h in shown.handles(shown.records)] == list(shown.models)


@pytest.mark.parametrize(
    ("kilograms", "name", "shown"),
    [(2.0, "kg", 2.0), (0.9, "g", 900.0), (1e-4, "mg", 100.0), (1e-7, "µg", 100.0),
     (1e-12, "µg", 0.001)],
)  # fmt: skip
def test_a_mass_has_the_unit_that_a_reader_would_choose(
    kilograms: float, name: str, shown: float
) -> None:
    found, factor = looks.unit([kilograms, kilograms / 100])
    assert found == name
    assert kilograms * factor == pytest.approx(shown)


def test_energy_and_time_have_theirs() -> None:
    assert looks.unit([1e-4], looks.ENERGY) == ("mWh", 1e6)
    assert looks.unit([0.5], looks.TIME) == ("min", 60.0)
    assert looks.unit([0.001], looks.TIME) == ("s", 3600.0)


def test_an_interval_is_students() -> None:
    mean, half = looks.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 / math.sqrt(3))  # t of 2 degrees of freedom at 97.5 %
    mean, half = looks.interval([1.0, 2.0])
    assert mean == 1.5
    assert math.isnan(half)


def test_only_what_presses_all_others_flat_is_beyond_the_edge() -> None:
    calm = [1.0, 1.1, 1.2, 1.3]
    assert looks.edge(calm) == math.inf
    assert looks.edge([1.0, 1.0, 1.0, 9.0]) == math.inf  # no spread to measure by
    assert 1.3 < looks.edge([*calm, 100.0]) < 100


@pytest.mark.parametrize("name", ["$x_1$", "a$b", r"\frac{$", r"\$", "_under_score_", "$", "%s{0}"])
def test_a_name_is_drawn_as_it_is(name: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    label = figure.text(0.5, 0.5, looks.text(name))
    parsed, is_math = label._preprocess_math(label.get_text())  # type: ignore[attr-defined]
    assert not is_math
    assert parsed.strip() == name
    assert looks.said([f"It is {looks.text(name)}"]) == f"It is {name}."
    assert not looks.text(name).startswith("_")  # a legend would leave it out


def test_a_long_name_keeps_its_ends_and_a_sign_that_cannot_be_drawn_is_a_question_mark() -> None:
    assert looks.text("a" * 30 + "z" * 30, 11) == "aaaaa…zzzzz"
    assert looks.text("模型 a\nb\t") == "?? a b"
    assert looks.text(" ") == "unnamed"


def test_words_have_a_few_clauses_and_count_the_rest() -> None:
    assert looks.said(["a", "b"], "More.") == "a; b. More."
    assert looks.said([str(n) for n in range(12)]).endswith("8; and 3 more.")


def test_a_long_list_of_intensities_has_two_lines_at_most() -> None:
    dice = random.Random(0)
    runs = [of(run(dice, Effects()), intensity_zone=f"$zone {n}$") for n in range(50)]
    assert len(looks.basis(runs)) < 2 * looks.LINE + 40
    assert "world average at 475 g/kWh" in looks.basis(RECORDS)


def test_few_points_are_links_and_larger_and_above_many() -> None:
    _, (axes,) = looks.panels("", 1)
    for number in (5, 3000):
        ids = [str(n) for n in range(number)]
        links = {each: f"http://a/{each}" for each in ids}
        looks.scatter(axes, [(n, n) for n in range(number)], ids, links)
    few, many = axes.collections
    assert few.get_urls() == [f"http://a/{n}" for n in range(5)]
    assert not few.get_rasterized()
    assert not any(many.get_urls())
    assert many.get_rasterized()
    assert few.get_sizes()[0] > many.get_sizes()[0]
    assert few.get_zorder() > many.get_zorder()


@pytest.mark.parametrize(("total", "linked"), [(looks.LINKED, True), (looks.LINKED + 1, False)])
def test_links_end_where_a_figure_has_too_many_points(total: int, linked: bool) -> None:
    _, (axes,) = looks.panels("", 1)
    looks.scatter(axes, [(0, 0)], ["a"], {"a": "http://a"}, of=total)
    assert any(axes.collections[0].get_urls()) == linked


def test_a_figure_with_one_panel_takes_the_whole_width() -> None:
    for number, columns in ((1, 1), (2, 2), (3, 2)):
        figure, every = looks.panels("", number)
        assert len(figure.axes) == len(every) == number
        assert every[0].get_subplotspec().get_gridspec().ncols == columns
