"""What of a store may be compared: what is left out, what is reckoned anew, and what is said."""

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
from synthetic import G_PER_KWH, Effects, grid, run, searched

from green_tune import intensity, recompute
from green_tune.foreign import FOREIGN
from green_tune.query import EXPERIMENT
from green_tune.results import (
    EVALUATIONS,
    REUSED,
    STOPPED_EARLY,
    STOPPED_WHY,
    UNFIT,
    Evaluation,
    RunRecord,
    to_tag,
)
from green_tune.selection import OTHERS, REPEATED, Selection, select
from green_tune.trace import Trace

FRENCH = 56.0
SHARES = {"setup": 0.25, "train": 0.4, "eval": 0.2, "save": 0.15}


def one(number: int = 0, model: str = "gemma-2b") -> RunRecord:
    return run(random.Random(number), Effects(), model=model)


def tagged(record: RunRecord, **tags: str) -> RunRecord:
    return replace(record, tags={**record.tags, **tags})


def measured(record: RunRecord, **metrics: float) -> RunRecord:
    return replace(record, metrics={**record.metrics, **metrics})


def french(record: RunRecord) -> RunRecord:
    """The same energy, as if it had been spent in France."""
    return recompute.with_intensity(record, intensity.resolve(str(FRENCH)))


def phased(
    record: RunRecord, shares: Mapping[str, float], began: float, kind: str = "train"
) -> RunRecord:
    """The run with its figures in phases, of which `began` was spent at its first validation."""
    names = ("energy_kwh", "energy_gpu_kwh", "energy_cpu_kwh", "energy_ram_kwh", "emissions_kg",
             "runtime_h")  # fmt: skip
    parts = {f"{p}/{n}": s * record.metrics[n] for p, s in shares.items() for n in names}
    kg = record.metrics["emissions_kg"]
    course = [
        Evaluation(step=0, progress=0.0, val_loss=3.0, emissions_kg=began * kg),
        Evaluation(step=10, progress=0.5, val_loss=2.0, emissions_kg=(began + 0.3) * kg),
    ]
    changed = measured(tagged(record, **{EVALUATIONS: to_tag(course)}), **parts)
    return replace(changed, kind=kind)


def theirs(number: int, **metrics: float) -> RunRecord:
    """A run of another tool."""
    return replace(
        one(number), kind="", metrics=metrics, params={"dataset": "squad"}, tags={EXPERIMENT: "7"}
    )


def only(selection: Selection) -> RunRecord:
    (record,) = selection.records
    return record


def test_runs_that_are_alike_stay_as_they_are_and_nothing_is_said() -> None:
    records = searched(0, Effects(), 8)

    assert select(records) == Selection(records=records, unfit=[], left_out={}, notes=[])


def test_an_empty_store_selects_nothing() -> None:
    assert select([]) == Selection(records=[], unfit=[], left_out={}, notes=[])


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (replace(one(), status="FAILED"), "failed"),
        (replace(one(), status="KILLED"), "stopped"),
        (replace(one(), status="RUNNING"), "still running"),
        (replace(one(), status="SCHEDULED"), "not yet started"),
        (tagged(one(), energy_valid="false"), "energy not trusted"),
        (measured(one(), energy_kwh=float("nan")), "no energy"),
        (measured(one(), energy_kwh=0.0), "no energy"),
        (replace(one(), metrics={"val_loss": 1.0}), "no energy"),
        (measured(one(), emissions_kg=float("inf")), "no emissions"),
        (measured(one(), val_loss=float("nan")), "no validation loss"),
        (replace(one(), metrics={"energy_kwh": 1.0, "emissions_kg": 1.0}), "no validation loss"),
        (theirs(0, loss=1.0), OTHERS),
        (theirs(0, eval_loss=1.0, emissions=0.1), OTHERS),
        (theirs(0, energy_consumed=1.0), "no validation loss"),
    ],
)
def test_what_is_no_result_is_left_out_with_its_reason(record: RunRecord, why: str) -> None:
    good = one(1)
    selection = select([record, good])

    assert selection.records == [good]
    assert {key: len(runs) for key, runs in selection.left_out.items()} == {why: 1}


@pytest.mark.parametrize("kind", ["sweep", "worker", "grid", "compare", "refused", "resumption"])
def test_our_runs_that_are_no_results_are_no_loss(kind: str) -> None:
    assert select([replace(one(), kind=kind)]) == select([])


def test_cells_without_room_are_kept_apart() -> None:
    cell = replace(tagged(one(), **{UNFIT: "needs 30 GiB"}), kind="cell", metrics={})
    selection = select([cell])

    assert (selection.unfit, selection.records, selection.left_out) == ([cell], [], {})


def test_a_measurement_counts_once() -> None:
    original = one(0)
    here = replace(tagged(one(1), **{REUSED: original.run_id}), kind="trial")
    elsewhere = [replace(tagged(one(n), **{REUSED: "gone"}), kind="trial") for n in (2, 3)]
    selection = select([here, original, *elsewhere])

    assert [record.run_id for record in selection.records] == [
        original.run_id,
        elsewhere[0].run_id,
    ]
    assert selection.left_out == {REPEATED: [here, elsewhere[1]]}


def test_kilograms_are_put_at_the_most_common_intensity() -> None:
    records = searched(0, Effects(), 5)
    mixed = [*records[:3], *map(french, records[3:])]
    selection = select(mixed)

    for record, plain in zip(selection.records, records, strict=True):
        assert record.metrics == pytest.approx(plain.metrics)
        for mine, other in zip(record.course, plain.course, strict=True):
            assert mine.emissions_kg == pytest.approx(other.emissions_kg, rel=1e-5)
    (note,) = selection.notes
    assert "3 runs at 475 g/kWh, 2 runs at 56 g/kWh" in note
    assert "assumed: world average at 475 g/kWh" in note


def test_of_equally_common_intensities_the_first_is_taken() -> None:
    records = searched(0, Effects(), 2)
    selection = select([french(records[0]), records[1]])

    assert {record.tags["intensity_g_per_kwh"] for record in selection.records} == {"56.0"}


def test_another_pue_is_another_intensity() -> None:
    records = searched(0, Effects(), 3)
    doubled = measured(
        tagged(records[2], pue="2.0"), emissions_kg=2 * records[2].metrics["emissions_kg"]
    )
    selection = select([*records[:2], doubled])

    assert selection.records[2].metrics["emissions_kg"] == pytest.approx(
        records[2].metrics["emissions_kg"]
    )
    assert "1 run at 475 g/kWh x PUE 2" in selection.notes[0]


def test_what_was_given_is_taken_whether_or_not_it_was_applied() -> None:
    records = searched(0, Effects(), 3)
    given = intensity.resolve(str(FRENCH))
    fresh, applied = select(records, given), select([french(r) for r in records], given)

    assert [r.metrics for r in fresh.records] == [r.metrics for r in applied.records]
    assert "3 runs at 475 g/kWh; all kilograms here are reckoned at given at 56" in fresh.notes[0]
    assert applied.notes == []


def test_kilograms_by_the_hour_are_left_alone() -> None:
    records = [french(one(0)), one(1)]
    trace = Trace(zone="FR", kind="direct", source="a file", rows=[(0.0, 50.0)])
    foreign = theirs(2, energy_consumed=1.0, emissions=0.1, eval_loss=1.0)
    selection = select([*records, foreign], trace)

    assert selection.records == records
    assert [len(runs) for runs in selection.left_out.values()] == [1]


def test_setup_is_cut_off_where_some_runs_have_none_of_their_own() -> None:
    whole = phased(one(0), SHARES, began=0.3)
    trial = phased(one(1), {"setup": 0.02, "train": 0.6, "eval": 0.3, "save": 0.08}, 0.05, "trial")
    selection = select([whole, trial])
    cut, its = selection.records

    for record, plain, share in ((cut, whole, 0.75), (its, trial, 0.98)):
        for name in ("energy_kwh", "energy_gpu_kwh", "energy_low_kwh", "emissions_kg", "runtime_h",
                     "emissions_high_kg"):  # fmt: skip
            assert record.metrics[name] == pytest.approx(share * plain.metrics[name]), name
        assert record.metrics["emissions_rate_kg_per_h"] == pytest.approx(
            record.metrics["emissions_kg"] / record.metrics["runtime_h"]
        )
    kg = whole.metrics["emissions_kg"]
    spent = [evaluation.emissions_kg for evaluation in cut.course]
    assert spent == pytest.approx([0.05 * kg, 0.35 * kg], rel=1e-5)
    assert cut.metrics["val_loss"] == whole.metrics["val_loss"]
    (note,) = selection.notes
    assert "training, validation and saving alone" in note


def test_totals_stay_where_all_runs_hold_the_same_phases() -> None:
    records = [phased(one(0), SHARES, 0.3), phased(one(1), SHARES, 0.3)]

    assert select(records) == Selection(records=records, unfit=[], left_out={}, notes=[])


def test_task_metrics_of_some_runs_alone_are_cut_off() -> None:
    shares = {"setup": 0.1, "quality": 0.3, "train": 0.4, "eval": 0.1, "save": 0.1}
    scored = phased(one(0), shares, began=0.3)  # setup, half of the task metrics, one validation
    selection = select([scored, phased(one(1), SHARES, began=0.3)])

    record, kg = selection.records[0], scored.metrics["emissions_kg"]
    assert record.metrics["emissions_kg"] == pytest.approx(0.6 * kg)
    assert record.course[0].emissions_kg == pytest.approx(0.05 * kg, rel=1e-5)
    assert record.course[-1].emissions_kg < record.metrics["emissions_kg"]


def test_both_changes_together_keep_the_course_below_the_total() -> None:
    whole = phased(french(one(0)), SHARES, began=0.3)
    trials = [phased(one(n), {"train": 0.7, "eval": 0.3}, 0.05, "trial") for n in (1, 2)]
    selection = select([whole, *trials])
    record = selection.records[0]
    kg = record.metrics["emissions_kg"]

    assert len(selection.notes) == 2
    assert kg == pytest.approx(0.75 * one(0).metrics["emissions_kg"])
    assert [e.emissions_kg / kg for e in record.course] == pytest.approx(
        [0.05 / 0.75, 0.35 / 0.75], rel=1e-5
    )


def test_runs_that_noted_no_phases_keep_their_totals_and_it_is_said() -> None:
    old, trial = one(0), phased(one(1), {"train": 1.0}, 0.05, "trial")
    selection = select([old, trial])

    assert selection.records[0] == old
    assert "1 that noted no phases keep their totals" in selection.notes[0]


def test_runs_of_other_tools_are_reckoned_at_the_same_intensity_and_said() -> None:
    ours = searched(0, Effects(), 2)
    foreign = theirs(5, energy_consumed=2.0, emissions=0.1, eval_loss=1.0, duration=3600.0)
    selection = select([*ours, foreign])

    record = selection.records[-1]
    assert record.kind == FOREIGN
    assert record.metrics["emissions_kg"] == pytest.approx(2.0 * G_PER_KWH / 1000)
    assert record.metrics["emissions_rate_kg_per_h"] == pytest.approx(2.0 * G_PER_KWH / 1000)
    assert "1 run at an unknown one" in selection.notes[0]
    assert any("1 run of other tools" in note for note in selection.notes)


def test_runs_of_other_tools_alone_keep_the_intensity_that_they_imply() -> None:
    runs = [theirs(n, energy_consumed=2.0, emissions=0.1, eval_loss=1.0) for n in range(3)]

    for record in select(runs).records:
        assert record.metrics["emissions_kg"] == pytest.approx(0.1)
        assert float(record.tags["intensity_g_per_kwh"]) == pytest.approx(50.0)
        assert record.tags["intensity_assumed"] == "true"


def test_without_any_kilograms_the_worlds_intensity_is_assumed() -> None:
    record = only(select([theirs(0, energy_consumed=2.0, eval_loss=1.0)]))

    assert record.metrics["emissions_kg"] == pytest.approx(2.0 * 475 / 1000)


def test_several_data_sets_and_models_are_said() -> None:
    records = [tagged(one(0), data_digest="aaaaaaaa"), tagged(one(1), data_digest="bbbbbbbb")]
    data, models = select([*records, tagged(one(2, model="llama-2-7b"), data_digest="aaaaaaaa")]
                          ).notes  # fmt: skip

    assert data == "qa: 2 data sets (aaaaaa, bbbbbb), compared separately"
    assert models.startswith("2 base models (gemma-2b, llama-2-7b)")
    assert select(records).notes == [data]


def test_flagged_and_early_ended_runs_stay_and_are_named() -> None:
    flagged = tagged(one(0), energy_flags="paused")
    early = tagged(one(1), **{STOPPED_EARLY: "after step 3 of 9", STOPPED_WHY: "dominated by #1"})
    selection = select([flagged, early])

    assert selection.records == [flagged, early]
    assert flagged.run_id[:8] in selection.notes[0]
    assert "flagged" in selection.notes[0]
    assert early.run_id[:8] in selection.notes[1]
    assert "ended early" in selection.notes[1]


def test_a_whole_grid_of_the_study_is_one_selection() -> None:
    records = grid(0, Effects(), seeds=1)
    selection = select(records)

    assert selection.records == records
    assert [note.split(" (")[0] for note in selection.notes] == ["2 base models"]


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), -float("inf")])
def test_a_figure_that_is_no_number_is_none(figure: float) -> None:
    record = only(select([measured(one(), energy_low_kwh=figure, steps=figure)]))
    assert not {"energy_low_kwh", "steps"} & record.metrics.keys()
    assert record.metrics["energy_kwh"] == one().metrics["energy_kwh"]


@pytest.mark.parametrize(
    "tags",
    [
        {"intensity_g_per_kwh": ""},
        {"intensity_g_per_kwh": "about 475"},
        {"intensity_g_per_kwh": "nan"},
        {"pue": "none"},
        {"pue": "-1"},
    ],
)
def test_an_intensity_that_is_no_number_is_unknown(tags: dict[str, str]) -> None:
    bad, good = tagged(one(0), **tags), one(1)
    selection = select([bad, good, one(2)])
    assert {record.tags["intensity_g_per_kwh"] for record in selection.records} == {"475.0", "475"}
    assert "1 run at an unknown one" in selection.notes[0]


@pytest.mark.parametrize("text", ["nan", "-1", "{}", "[[0, 0, 1]]", "[[0, 0, NaN, 0]]", "[[1,2,"])
def test_a_course_that_cannot_be_read_is_none(text: str) -> None:
    assert only(select([tagged(one(), **{EVALUATIONS: text})])).course == []


def test_a_note_names_a_dozen_of_many() -> None:
    records = [
        tagged(one(n), base_model=f"model-{n}", data_digest=f"{n:06}", intensity_g_per_kwh=str(n))
        for n in range(1, 41)
    ]
    assert max(map(len, select(records).notes)) < 400
