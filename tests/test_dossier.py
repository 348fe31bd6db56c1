"""A report is made of whatever runs there are, says what it rests on, and names no run twice."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from synthetic import Effects, drawn, grid, quoted, run, searched

from green_tune import dossier, page, selection
from green_tune.document import Document, Finding, Picture, Table
from green_tune.results import UNFIT, RunRecord

EFFECTS = Effects(emissions={"batch_size": -0.1}, loss={"epochs": -0.1})


def document(records: Sequence[RunRecord], target_loss: float | None = None) -> Document:
    links = {record.run_id: f"http://127.0.0.1:5000/#/runs/{record.run_id}" for record in records}
    selected = selection.select(records)
    case = dossier.Case(selection=selected, links=links, target_loss=target_loss)
    return dossier.make(case)


def parts(of: Document, kind: type) -> list:  # type: ignore[type-arg]
    return [part for section in of.sections for part in section.parts if isinstance(part, kind)]


@pytest.fixture(scope="module")
def whole() -> Document:
    return document([*grid(0, EFFECTS), *searched(1, EFFECTS, 30)])


def test_it_has_all_that_the_study_showed(whole: Document) -> None:
    pictures = {picture.name for picture in parts(whole, Picture)}
    assert pictures >= {
        *("emissions", "tasks", "rates", "front", "fronts", "effects_per_run", "importance"),
        *("effects_per_tokens", "effects_per_target", "marginal", "ranking", "efficiency"),
        "forecast",
    }
    tables = {table.name for table in parts(whole, Table)}
    assert tables == {"emissions", "front", "effects", "marginal", "machines", "efficiency", "runs"}
    assert [section.title for section in whole.sections] == list(dossier.SECTIONS)


def test_every_run_is_in_the_table_once_with_a_link(whole: Document) -> None:
    (table,) = (table for table in parts(whole, Table) if table.name == "runs")
    ids = [row["run_id"] for row in table.rows]
    assert len(ids) == len(set(ids)) == 84
    assert set(ids) <= set(table.links)


def test_every_finding_names_runs_that_are_there(whole: Document) -> None:
    findings = parts(whole, Finding)
    assert len(findings) == 6
    for finding in findings:
        assert set(finding.runs) <= set(whole.links)
        assert bool(finding.settle) == (finding.answer == "not enough evidence")


def test_the_screen_has_each_answer_within_its_width(whole: Document) -> None:
    text = dossier.in_short(whole, 80)
    assert max(map(len, text.splitlines())) <= 80
    for finding in parts(whole, Finding):
        assert finding.answer in text
    assert "](" not in text


def test_the_run_of_a_report_is_tagged_with_its_answers(whole: Document) -> None:
    tags = dossier.to_tags(whole)
    answers = {name: text for name, text in tags.items() if name.startswith("finding.")}
    assert len(answers) == 6
    assert set(answers.values()) <= {"supported", "contradicted", "not enough evidence"}


def test_one_run_is_shown_and_compared_with_nothing() -> None:
    alone = document(grid(0, EFFECTS)[:1])
    assert not parts(alone, Finding)
    assert "cannot be compared" in " ".join(alone.summary)
    assert {"emissions", "runs"} <= {table.name for table in parts(alone, Table)}
    assert page.to_html(alone)


def test_what_is_left_out_is_counted_and_named() -> None:
    records = grid(0, EFFECTS)[:12]
    broken = replace(records[0], status="FAILED")
    unfit = replace(records[1], status="FAILED", tags={**records[1].tags, UNFIT: "needs 31 GiB"})
    made = document([broken, unfit, *records[2:]])
    said = " ".join(made.summary)
    assert "1 run left out: 1 failed" in said
    assert "1 cell of a grid did not fit" in said
    tables = {table.name: table for table in parts(made, Table)}
    assert [row["run_id"] for row in tables["left_out"].rows] == [broken.run_id]
    assert tables["does_not_fit"].rows[0]["why"] == "needs 31 GiB"


def test_gpus_are_compared_by_the_configs_that_they_share() -> None:
    dice = random.Random(0)
    alike = grid(0, EFFECTS, models=["gemma-2b"], tasks=["qa"], gpus=["t4", "l4"])
    more = [run(dice, EFFECTS, gpu="l4", **drawn(dice)) for _ in range(5)]  # type: ignore[arg-type]
    made = document([*alike, *more])
    (machines,) = (table for table in parts(made, Table) if table.name == "machines")
    assert [row["runs"] for row in machines.rows] == [3, 3]
    (shown,) = (each for each in parts(made, Picture) if each.name == "emissions")
    assert "6 of 11 runs" in shown.note


def test_gpus_without_a_common_config_are_said_to_be_of_different_ones() -> None:
    dice = random.Random(0)
    records = [
        run(dice, EFFECTS, gpu=gpu, **drawn(dice))  # type: ignore[arg-type]
        for gpu in ("t4", "l4")
        for _ in range(4)
    ]
    (shown,) = (each for each in parts(document(records), Picture) if each.name == "emissions")
    assert "No config is common to all GPUs" in shown.note


def test_a_target_loss_that_is_asked_for_is_what_grams_are_counted_to() -> None:
    made = document(searched(1, EFFECTS, 20), target_loss=2.5)
    (table,) = (table for table in parts(made, Table) if table.name == "marginal")
    assert {row["target_loss"] for row in table.rows} == {2.5}


def test_names_from_a_store_are_text_on_every_page() -> None:
    evil = "<script>alert(1)</script>[x](javascript:alert(2))|*_`"
    records = [
        replace(
            r, name=evil, tags={**r.tags, "base_model": evil}, params={**r.params, "task": evil}
        )
        for r in searched(1, EFFECTS, 8)
    ]
    html = page.to_html(document(records))
    assert "<script>alert" not in html
    assert 'href="javascript:' not in html


def test_quotes_have_their_scoreboard_and_one_line_on_the_screen() -> None:
    runs = quoted(0, searched(1, EFFECTS, 12))
    cut = {k: v for k, v in runs[0].metrics.items() if not k.endswith("_error")}
    stopped = replace(runs[0], status="KILLED", metrics=cut)
    made = document([stopped, *runs[1:]])
    (section,) = (each for each in made.sections if each.title == "Forecasts")
    texts = [part for part in section.parts if isinstance(part, str)]
    assert "1 run that did not end as quoted" in texts[0]
    assert [part.name for part in section.parts if isinstance(part, Table)] == ["scoreboard"]
    pictures = [part.name for part in section.parts if isinstance(part, Picture)]
    assert pictures == ["quotes", "quotes_rolling", "forecast"]
    lines = [line for line in made.summary if line.startswith("Quoted before they began: 11 runs")]
    assert len(lines) == 1
    assert dossier.in_short(made).count("Quoted before they began") == 1
    assert page.to_html(made)


def test_a_quote_is_judged_by_all_that_its_run_spent_though_a_comparison_cuts_that() -> None:
    runs = quoted(0, searched(1, EFFECTS, 12))
    phases = {f"train/{name}": 0.5 for name in ("energy_kwh", "emissions_kg", "runtime_h")}
    mixed = [
        replace(r, kind="trial" if n % 2 else "train", metrics={**r.metrics, **phases})
        for n, r in enumerate(runs)
    ]
    cut, whole = document(mixed), document(runs)
    assert any("training, validation and saving alone" in line for line in cut.summary)
    said = [
        next(line for line in made.summary if line.startswith("Quoted")) for made in (cut, whole)
    ]
    assert said[0] == said[1]


def test_every_table_is_json_without_nan(whole: Document) -> None:
    for table in parts(whole, Table):
        rows = json.loads(page.to_json(table), parse_constant=lambda text: pytest.fail(text))
        assert len(rows) == len(table.rows)
