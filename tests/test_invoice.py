"""The invoice: its arithmetic, and that nothing is said without evidence."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from green_tune.invoice import invoice, markdown
from green_tune.results import EVALUATIONS, RunRecord

START = datetime(2026, 11, 22, tzinfo=UTC)
WORLD = {"intensity_zone": "world average", "intensity_g_per_kwh": "475",
         "intensity_assumed": "true"}  # fmt: skip


def trial(
    number: int,
    loss: float = 2.0,
    kg: float = 0.010,
    *,
    status: str = "FINISHED",
    course: Sequence[tuple[int, float, float, float]] = (),
    tags: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
    start_loss: float | None = 3.0,
) -> RunRecord:
    figures = {"emissions_kg": kg, "energy_kwh": 2 * kg, "runtime_h": 0.1, "steps": 40.0}
    figures |= {"val_loss": loss} if status == "FINISHED" else {}
    figures |= {} if start_loss is None else {"start_val_loss": start_loss}
    return RunRecord(
        run_id=f"{number:032x}",
        name="",
        kind="trial",
        status=status,
        started=START + timedelta(minutes=number),
        params=params or {},
        metrics=figures,
        tags={"green_tune.trial": str(number), EVALUATIONS: json.dumps(course), **(tags or {})},
    )


def own(kwh: float, kg: float) -> RunRecord:
    spent = {"overhead/energy_kwh": kwh, "overhead/emissions_kg": kg}
    return RunRecord(
        run_id="p", name="", kind="sweep", status="FINISHED", started=START, metrics=spent
    )


def line(lines: Sequence[str], part: str) -> str:
    return next(line for line in lines if part in line)


def test_of_nothing_nothing_is_said() -> None:
    assert invoice([], study="s") == []
    running = RunRecord(run_id="0", name="", kind="trial", status="RUNNING", started=START)
    assert invoice([running], study="s") == []


def test_of_one_plain_trial_only_its_cost_is_said() -> None:
    assert invoice([trial(0)], study="s") == ["study s spent 10 g CO2e in 1 trial (intensity: "
                                              "no intensity)"]  # fmt: skip


def test_the_cost_holds_the_failed_and_what_lies_between_and_not_what_was_taken_over() -> None:
    reused = trial(2, kg=9.0, tags={"green_tune.reused": "f"})
    failed = trial(1, kg=0.002, status="FAILED")
    first = invoice([trial(0, tags=WORLD), failed, reused], [own(0.1, 0.0505)], study="s")[0]
    assert first == (
        "study s spent 62.5 g CO2e in 2 trials (assumed intensity: world average at 475 g/kWh)"
    )


def test_a_kilogram_and_more_is_written_in_kilograms() -> None:
    assert "spent 1.23 kg CO2e" in invoice([trial(0, kg=1.2345)], study="s")[0]
    assert "spent 999 g CO2e" in invoice([trial(0, kg=0.9994)], study="s")[0]
    assert "spent 1 kg CO2e" in invoice([trial(0, kg=0.9996)], study="s")[0]


def test_nearly_all_of_the_gain_for_a_fifth_of_the_emissions_is_said() -> None:
    lines = invoice([trial(4, 1.01, 0.021), trial(7, 1.0, 0.100), trial(8, 1.5, 0.001)], study="s")
    said = "trial 4 reached 99 % of the best loss's gain at 21 % of trial 7's emissions"
    assert said in lines


def test_percentages_are_rounded_against_the_sentence() -> None:
    lines = invoice([trial(4, 1.0159, 0.0211), trial(7, 1.0, 0.1)], study="s")
    assert "reached 99 % of the best loss's gain at 22 % of" in line(lines, "reached")


def test_a_point_on_the_way_can_be_the_cheaper_one() -> None:
    course = [(20, 0.5, 1.02, 0.05)]
    lines = invoice([trial(4, 1.0, 0.1, course=course)], study="s")
    said = "trial 4 at 50 % of its steps reached 99 % of the best loss's gain at 50 % of its"
    assert line(lines, "reached") == f"{said} emissions"


@pytest.mark.parametrize(
    "cheap",
    [
        trial(4, 1.11, 0.02),  # too little of the gain
        trial(4, 1.01, 0.09),  # hardly cheaper
    ],
)
def test_a_cheaper_trial_that_is_not_much_so_or_much_worse_is_not_praised(
    cheap: RunRecord,
) -> None:
    assert "reached" not in " ".join(invoice([cheap, trial(7, 1.0, 0.1)], study="s"))


def test_without_a_gain_or_a_start_nothing_is_compared_with_it() -> None:
    worse = [trial(0, 3.5, 0.01), trial(1, 3.2, 0.1)]
    unknown = [trial(0, 1.0, 0.01, start_loss=None), trial(1, 0.99, 0.1, start_loss=None)]
    for records in (worse, unknown):
        assert "reached" not in " ".join(invoice(records, study="s"))


def test_where_nothing_was_emitted_nothing_was_cheaper() -> None:
    assert invoice([trial(0, 2.0, 0.0), trial(1, 1.0, 0.0)], study="s") == [
        "study s spent 0 g CO2e in 2 trials (intensity: no intensity)"
    ]


def test_the_bend_of_the_front_is_named_where_there_is_one() -> None:
    front = [trial(0, 2.0, 0.002), trial(1, 1.2, 0.003), trial(2, 1.0, 0.01)]
    said = "the front bends at trial 1: loss 1.2 for 3 g; beyond, a gram buys less"
    assert said in invoice(front, study="s")
    assert "bends" not in " ".join(invoice(front[:2], study="s"))


def test_what_validations_on_the_way_add_is_counted() -> None:
    # Reference 2.1 and 10.5 g: the end covers 0.1 x 0.5, the way adds 0.05 x 0.5 (in nats x g).
    course = [(20, 0.5, 2.05, 0.0095)]
    lines = invoice([trial(0, 2.0, 0.010, course=course)], study="s")
    assert "validations on the way add 50 % hypervolume to the ends" in lines
    assert "on the way" not in " ".join(invoice([trial(0)], study="s"))


def ten(last_loss: float, kg: float = 0.010) -> list[RunRecord]:
    return [trial(n, 2.0 if n < 9 else last_loss, kg) for n in range(10)]


def test_what_the_last_trials_bought_is_said_once_there_are_as_many_before_them() -> None:
    # Up to the reference of 2.1: from 0.1 to 0.101 nats, at the same emissions.
    lines = invoice(ten(1.999), study="s")
    assert "the last 5 trials spent 50 g for 1.0 % more hypervolume" in lines
    assert "the last 5 trials spent 50 g for no more hypervolume" in invoice(ten(2.0), study="s")
    tiny = invoice(ten(1.99999), study="s")
    assert "the last 5 trials spent 50 g for less than 0.1 % more hypervolume" in tiny
    assert "the last" not in " ".join(invoice(ten(1.0)[1:], study="s"))


def test_last_trials_that_cost_nothing_are_not_held_against_the_study() -> None:
    taken = [trial(n, tags={"green_tune.reused": "f"} if n > 4 else {}) for n in range(10)]
    assert "the last" not in " ".join(invoice(taken, study="s"))


def stopped(number: int, why: str, saved_kg: str) -> RunRecord:
    tags = {"stopped_early": "after step 20 of 40", "green_tune.stopped": why,
            "green_tune.saved_kg": saved_kg}  # fmt: skip
    return trial(number, tags=tags)


def test_what_stops_saved_is_a_forecast_and_each_reason_has_its_own() -> None:
    beaten = [stopped(0, "dominated by #4: 2.1 at 5 g", "0.04"), stopped(1, "dominated", "0.0211")]
    over = stopped(2, "emissions_budget_kg=0.06: 0.06 kg are spent, nothing is left", "")
    records = [*beaten, over, stopped(3, "a gram gains less than min_gain_per_g=0.1", "")]
    lines = invoice(records, study="s")
    assert "stopping 2 dominated trials saved about 61.1 g (a forecast)" in lines
    assert "the budget stopped 1 trial short of a full schedule" in lines


@pytest.mark.parametrize("saved", ["", "0.0", "nan", "-0.1", "much"])
def test_a_stop_without_a_forecast_has_saved_nothing_that_we_know(saved: str) -> None:
    assert "saved" not in " ".join(invoice([stopped(0, "dominated by #4", saved)], study="s"))


def test_what_was_taken_over_saved_what_was_measured_then() -> None:
    one, two = (trial(n, kg=0.006, tags={"green_tune.reused": "f"}) for n in range(2))
    assert invoice([one], study="s") == [
        "1 trial was taken over from an earlier run, which saved 6 g (as measured then)"
    ]
    said = "2 trials were taken over from earlier runs, which saved 12 g (as measured then)"
    assert said in invoice([one, two], study="s")


def test_an_attempt_that_was_tried_again_is_cut_off_and_no_other_is() -> None:
    cut = trial(0, kg=0.003, status="KILLED")
    again = trial(1, tags={"green_tune.retry_of": cut.run_id})
    failed = trial(2, kg=0.0045, status="FAILED")
    lines = invoice([cut, again, failed], study="s")
    assert "1 attempt was cut off and cost 3 g" in lines
    assert "1 trial that did not finish cost 4.5 g" in lines
    assert "cut off" not in " ".join(invoice([again], study="s"))
    assert "not finish" not in " ".join(invoice([cut, again], study="s"))


def test_the_sweeps_own_share_is_of_all_that_it_spent() -> None:
    lines = invoice(
        [trial(0), trial(1, tags={"green_tune.reused": "f"})], [own(0.002, 0.001)], study="s"
    )
    assert "the sweep itself (imports, loading, proposals) cost 9.1 % of its energy" in lines
    assert "itself" not in " ".join(invoice([trial(0)], study="s"))
    assert "itself" not in " ".join(invoice([], [own(0.002, 0.001)], study="s"))


def test_no_sentence_of_a_usual_study_is_wider_than_a_hundred_characters() -> None:
    spent = [0.0123 * (n + 1) ** 2 for n in range(12)]
    records = [
        trial(110 + n, 2 - n / 20, kg, tags=WORLD, course=[(20, 0.5, 2.1 - n / 20, kg / 2)])
        for n, kg in enumerate(spent)
    ]
    records += [stopped(130, "dominated by #1", "0.0123"), trial(131, status="FAILED")]
    lines = invoice(records, [own(0.01, 0.01)], study="llama-2-7b-qa")
    assert len(lines) > 5
    assert max(len(line) for line in lines) <= 100


def test_the_page_has_the_sentences_and_the_front_with_what_varied() -> None:
    records = [
        trial(0, 2.0, 0.002, tags=WORLD, params={"batch_size": "8", "epochs": "1"}),
        trial(1, 1.2, 0.003, params={"batch_size": "16", "epochs": "1"}),
        trial(2, 1.0, 0.010, params={"batch_size": "32", "epochs": "1"}),
        trial(3, 2.5, 0.010, params={"batch_size": "2", "epochs": "1"}),
    ]
    page = markdown(records, study="s")
    assert page.startswith("# Study s: the invoice\n\n- study s spent 25 g CO2e")
    assert page.endswith(
        "## The front\n\n"
        "| trial | steps | val loss | g CO2e (assumed intensity) | batch_size |  |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| 0 | all | 2.0000 | 2 | 8 | lowest emissions |\n"
        "| 1 | all | 1.2000 | 3 | 16 | bend |\n"
        "| 2 | all | 1.0000 | 10 | 32 | lowest loss |\n"
    )
    assert all(f"- {line}\n" in page for line in invoice(records, study="s"))


def test_a_page_without_results_says_so() -> None:
    assert markdown([], study="s") == (
        "# Study s: the invoice\n\n## The front\n\nNo trial has finished.\n"
    )
