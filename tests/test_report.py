import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from green_tune import cells, points, report, summary
from green_tune.results import EVALUATIONS, REUSED, Evaluation, RunRecord, to_tag

START = datetime(2026, 11, 22, tzinfo=UTC)
TRIAL = {"batch_size": "8", "accumulation_steps": "2", "learning_rate": "0.00123",
         "warmup_steps": "5", "epochs": "1", "lora_rank": "16", "task": "qa"}  # fmt: skip


def record(
    number: int,
    loss: float,
    kg: float,
    *,
    model: str = "tiny",
    status: str = "FINISHED",
    assumed: bool = True,
    bits: float = 1.0,
) -> RunRecord:
    figures = {"val_loss": loss, "val_bits_per_byte": bits, "start_val_loss": 9.0}
    spent = {"emissions_kg": kg, "energy_kwh": kg * 2, "runtime_h": 0.5,
             "emissions_rate_kg_per_h": kg * 2, "energy_modelled_share": 0.25}  # fmt: skip
    return RunRecord(
        run_id=f"{number:032x}",
        name=f"run-{number}",
        kind="trial",
        status=status,
        started=START,
        params=dict(TRIAL),
        metrics=spent | (figures if status == "FINISHED" else {}),
        tags={
            "base_model": model,
            "gpu_type": "t4",
            "device": "Tesla T4, 15 GiB",
            "data_digest": "abc",
            "green_tune.trial": str(number),
            "green_tune.study": "s",
            "intensity_zone": "world average" if assumed else "France",
            "intensity_g_per_kwh": "475" if assumed else "56.039",
            "intensity_assumed": str(assumed).lower(),
        },
    )


BEST = record(0, 1.0, 0.003)
CHEAP = record(1, 2.0, 0.001)
BEATEN = record(2, 2.5, 0.002)
FAILED = record(3, 0.0, 0.0005, status="FAILED")
ALL = (BEST, CHEAP, BEATEN, FAILED)


def marked(table: str) -> list[str]:
    lines = [line for line in table.splitlines() if report.MARK in line]
    return [line for line in lines if "Pareto" not in line]


def test_the_front_leaves_out_the_beaten_and_the_failed() -> None:
    assert report.fronts(ALL) == [BEST, CHEAP]


def test_a_failed_run_has_no_loss_to_compare_however_far_it_came() -> None:
    halfway = replace(BEST, status="FAILED")
    assert report.rows([halfway])[0]["val_loss"] is None
    assert report.rows([halfway])[0]["emissions_kg"] == 0.003


def test_a_trial_that_is_running_elsewhere_has_not_failed() -> None:
    running = replace(FAILED, status="RUNNING")
    assert "1 trials, 0 of them failed" in summary.sweep_summary([running], "s")


def test_long_names_and_many_models_still_fit_80_columns() -> None:
    long = [record(1, 1.5, 123.456, model="some-owner/some-very-long-name"),
            record(2, 1.0, 0.00012345, model="mistral-7b")]  # fmt: skip
    for row in long:
        row.params["task"], row.tags["gpu_type"] = "summarization", "a100-80"  # type: ignore[index]
    lines = report.runs_table(long).splitlines()
    assert max(len(line) for line in lines) <= 80
    assert "1.23e+05" in lines[2]
    assert "0.123" in lines[3]
    assert all(row.run_id[:8] in line for row, line in zip(long, lines[2:], strict=True))


def test_other_tasks_and_data_have_fronts_of_their_own() -> None:
    other = replace(BEATEN, tags={**BEATEN.tags, "data_digest": "def"})
    assert report.fronts([BEST, CHEAP, other]) == [BEST, CHEAP, other]


def test_across_models_bits_per_byte_decide_since_tokenizers_differ() -> None:
    coarse = record(4, 1.5, 0.001, model="gemma-2b", bits=0.5)
    fine = record(5, 1.0, 0.002, model="tiny", bits=0.9)
    assert report.fronts([coarse, fine]) == [coarse]


def test_a_sweeps_screen_fits_80_columns_and_says_what_it_cost() -> None:
    screen = summary.sweep_summary(ALL, "s")
    assert max(len(line) for line in screen.splitlines()) <= 80
    assert len(marked(screen)) == 2
    assert "4 trials, 1 of them failed" in screen
    assert "0.013 kWh, 0.0065 kg CO2e (assumed: world average at 475 g/kWh), 2 h" in screen
    assert "25% of this energy is a model" in screen
    assert "failed" in next(line for line in screen.splitlines() if line.startswith("3 "))
    assert "go on with" not in screen


def test_a_sweeps_note_holds_its_front_and_its_cost() -> None:
    note = summary.sweep_note(ALL)
    assert len(marked(note)) == 2
    assert note.endswith("* assumed: world average at 475 g/kWh")
    assert "*" not in summary.sweep_note([record(1, 1.0, 1.0, assumed=False)])
    assert "0.0065 kg CO2e (assumed: world average at 475 g/kWh)" in note


def test_a_sweep_that_was_stopped_says_how_to_go_on() -> None:
    assert "-P study=s" in summary.sweep_summary(ALL, "s", summary.to_go_on(6, "s"))


@pytest.mark.parametrize("table", [summary.trials_table, report.runs_table])
def test_tables_fit_80_columns_and_mark_grams_that_rest_on_an_assumption(table: object) -> None:
    make = summary.trials_table if table is summary.trials_table else report.runs_table
    assumed, known = make(ALL), make([record(1, 1.0, 1.0, assumed=False)])
    assert "g CO2e*" in assumed
    assert ("g/h*" in assumed) == (table is report.runs_table)
    assert "g CO2e*" not in known
    assert "g CO2e" in known
    assert max(len(line) for line in assumed.splitlines()) <= 80


def test_a_wide_terminal_shows_the_hyperparameters_as_well() -> None:
    wide, narrow = report.runs_table(ALL, 130), report.runs_table(ALL, 80)
    assert "1.2e-03" in wide
    assert "1.2e-03" not in narrow


def test_every_screen_with_kilograms_names_its_intensity() -> None:
    known = record(1, 1.0, 1.0, assumed=False)
    for screen in (summary.sweep_summary([known], "s"), report.comparison([known]),
                   report.run_summary(known)):  # fmt: skip
        assert "France at 56.039 g/kWh" in screen
        assert "assumed" not in screen
    for screen in (summary.sweep_summary([BEST], "s"), report.comparison([BEST]),
                   report.run_summary(BEST)):  # fmt: skip
        assert "assumed" in screen


def test_csv_and_json_hold_the_same_rows_with_full_names_and_base_units() -> None:
    from_csv = list(csv.DictReader(io.StringIO(report.to_csv(ALL))))
    from_json = json.loads(report.to_json(ALL))
    assert [row["run_id"] for row in from_csv] == [row["run_id"] for row in from_json]
    assert from_json[0]["emissions_kg"] == float(from_csv[0]["emissions_kg"]) == 0.003
    assert [row["front"] for row in from_json] == [True, True, False, False]
    assert from_json[3]["val_loss"] is None
    assert from_csv[3]["val_loss"] == ""
    assert from_json[0]["learning_rate"] == "0.00123"


@pytest.mark.parametrize("records", [(), ALL])
def test_an_empty_selection_is_said_and_is_still_valid_csv_and_json(
    records: Sequence[RunRecord],
) -> None:
    assert len(json.loads(report.to_json(records))) == len(records)
    assert len(list(csv.DictReader(io.StringIO(report.to_csv(records))))) == len(records)
    assert ("no runs match" in report.comparison(records)) == (not records)


def test_totals_count_failed_runs() -> None:
    assert report.totals(ALL) == pytest.approx(
        {
            "emissions_kg": 0.0065,
            "energy_kwh": 0.013,
            "runtime_h": 2.0,
            "trials": 4,
            "trials_failed": 1,
        }
    )


def test_intensities_of_many_hours_are_a_range_and_runs_without_a_figure_are_counted() -> None:
    hourly = [
        replace(BEST, tags={**BEST.tags, "intensity_g_per_kwh": grams,
                     "intensity_zone": "FR", "intensity_assumed": "false"})
        for grams in ("56.5", "31", "40")
    ]  # fmt: skip
    assert points.intensities([*hourly, BEST]) == (
        "FR at 31 to 56.5 g/kWh; assumed: world average at 475 g/kWh"
    )
    energy = {"energy_kwh": 1.0, "runtime_h": 1.0}
    unknown = replace(BEST, metrics=energy, tags={})
    assert "g/kWh, without 1 runs that have no figure)" in report.cost([*hourly, unknown])
    assert report.runs_table([unknown])


def test_flagged_runs_are_named_below_the_table_and_in_every_row() -> None:
    paused = replace(CHEAP, tags={**CHEAP.tags, "energy_flags": "paused for 6.0 s"})
    screen = summary.sweep_summary([BEST, paused], "s")
    assert "flagged, such as paused or shared, see their energy_flags: #1\n" in screen
    assert "energy_flags" not in summary.sweep_summary(ALL, "s")
    assert report.rows([paused])[0]["energy_flags"] == "paused for 6.0 s"


def test_totals_hold_what_a_sweep_spent_beside_its_trials() -> None:
    beside = {"overhead/energy_kwh": 0.013, "overhead/emissions_kg": 0.5, "overhead/runtime_h": 1.0}
    sessions = [replace(BEST, metrics=beside)] * 2
    together = report.totals(ALL, sessions)
    assert together["energy_kwh"] == pytest.approx(3 * 0.013)
    assert together["emissions_kg"] == pytest.approx(1.0065)
    assert together["runtime_h"] == 4.0
    assert report.overhead_share(ALL, sessions) == pytest.approx(2 / 3)
    assert "67% of its energy was spent outside of trials" in summary.sweep_summary(
        ALL, "s", overheads=sessions
    )


def test_a_run_says_where_its_energy_went_and_how_much_it_may_have_been_at_the_wall() -> None:
    parts = {"train/energy_kwh": 0.004, "setup/energy_kwh": 0.002, "save/energy_kwh": 0.0}
    ends = {"energy_low_kwh": 0.005, "energy_high_kwh": 0.012}
    known = replace(BEST, metrics={**BEST.metrics, **parts, **ends})
    known = replace(known, tags={**known.tags, "energy_flags": "paused for 6.0 s; suspended"})
    screen = report.run_summary(known)
    assert "train 67%, setup 33%\n" in screen
    assert "25% of this energy is a model\n" in screen
    assert "at the wall an estimated 0.005 to 0.012 kWh\n" in screen
    assert "note      paused for 6.0 s\nnote      suspended" in screen


@pytest.mark.parametrize(
    ("figures", "line"),
    [
        ({"exact_match": 0.409, "f1": 0.5249}, "exact match 0.02 → 0.41, F1 0.02 → 0.52 (n=64)"),
        ({"accuracy": 1.0, "f1": 1.0}, "accuracy 0.02 → 1.00, F1 0.02 → 1.00 (n=64)"),
        (
            {"rouge1": 0.35, "rouge2": 0.11, "rougeL": 0.28},
            "ROUGE-1 0.02 → 0.35, ROUGE-2 0.02 → 0.11, ROUGE-L 0.02 → 0.28 (n=64)",
        ),
    ],
)
def test_a_run_says_how_well_it_does_its_task_before_and_after(
    figures: dict[str, float], line: str
) -> None:
    measured = {f"quality.{name}": value for name, value in figures.items()}
    before = {f"start_{name}": 0.02 for name in measured}
    metrics = {**BEST.metrics, **measured, **before, "quality.examples": 64.0}
    (shown,) = [
        text
        for text in report.run_summary(replace(BEST, metrics=metrics)).splitlines()
        if text.startswith("quality")
    ]
    assert shown == f"quality   {line}"
    assert len(shown) <= 80
    assert "quality" not in report.run_summary(BEST)
    assert "accuracy ? → 0.50" in report.quality(
        replace(BEST, metrics={"quality.accuracy": 0.5, "quality.examples": 8.0})
    )


@pytest.mark.parametrize(
    ("hours", "text"), [(0.0005, "1.8 s"), (0.5, "30.0 min"), (3.456, "3.46 h")]
)
def test_times_are_in_the_unit_that_a_reader_would_choose(hours: float, text: str) -> None:
    assert cells.duration(hours) == text


def test_the_front_holds_adapters_on_the_way_and_says_where_each_is() -> None:
    course = [
        Evaluation(step=step, progress=step / 20, val_loss=loss, emissions_kg=kg)
        for step, loss, kg in ((0, 9.0, 0.0), (10, 1.2, 0.0008), (20, 1.0, 0.003))
    ]
    best = replace(BEST, tags={**BEST.tags, EVALUATIONS: to_tag(course)})
    taken = replace(CHEAP, tags={**CHEAP.tags, REUSED: "other"}, metrics={
        **CHEAP.metrics, "emissions_kg": 0.0005})  # fmt: skip
    rows = summary.front_rows([best, taken, BEATEN])
    assert [(row["trial"], row["progress"], row["ended"]) for row in rows] == [
        ("1", 1.0, True),
        ("0", 0.5, False),
        ("0", 1.0, True),
    ]
    assert [row["adapter"] for row in rows] == [
        "runs:/other/adapter",
        f"runs:/{best.run_id}/checkpoints/step-10",
        f"runs:/{best.run_id}/adapter",
    ]
    table = summary.trials_table([best, taken, BEATEN]).splitlines()
    assert "☆★" in table[2]
    assert "=★" in table[3]


def test_a_trial_that_was_ended_says_why_on_its_line() -> None:
    why = {"stopped_early": "after step 5 of 10", "green_tune.stopped": "dominated by #4: ..."}
    line = summary.trial_line(replace(BEATEN, tags={**BEATEN.tags, **why}))
    assert line.endswith("\n  ended after step 5 of 10: dominated by #4: ...")


@pytest.mark.parametrize(
    ("evidence", "error", "line"),
    [
        ("same", 0.08, "by the same config: 8% more came"),
        ("fit", -0.114, "by a fit to this store: 11% less came"),
        ("table", None, "by the table of GPUs"),
    ],
)
def test_a_run_says_what_it_was_quoted_and_how_far_off_that_was(
    evidence: str, error: float | None, line: str
) -> None:
    said = {"": 0.004, "low_": 0.002, "high_": 0.008}
    metrics = {**BEST.metrics, **{f"quote.emissions_{end}kg": kg for end, kg in said.items()}}
    if error is not None:
        metrics["quote.energy_error"] = error
    tags = {
        "quote.evidence": evidence,
        "quote.note": "a fit; interval from the errors of 12 quotes",
    }
    run = replace(BEST, metrics=metrics, tags={**BEST.tags, **tags})
    shown = report.run_summary(run).splitlines()
    at = shown.index(
        "quoted    0.004 kg CO2e (0.002 to 0.008, interval from the errors of 12 quotes)"
    )
    assert shown[at + 1] == f"          {line}"
    assert "quoted" not in report.run_summary(BEST)
