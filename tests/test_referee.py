"""Who ends a trial, and what is kept of it, by courses that are made up."""

from datetime import UTC, datetime

import pytest

from green_tune import dominance
from green_tune.dominance import Bound
from green_tune.referee import Referee
from green_tune.results import EVALUATIONS, STOPPED_EARLY, TRIAL, Evaluation, RunRecord, to_tag

BOUND = Bound(evidence=1, quantile=0.5, floor=0.0)


def a_course(*losses: float, kg: float = 1.0, steps: int = 4) -> list[Evaluation]:
    """Validations from before the first step on, each of the schedule's parts for so many kg."""
    return [
        Evaluation(step=n, progress=n / steps, val_loss=loss, emissions_kg=kg * n)
        for n, loss in enumerate(losses)
    ]


def a_record(
    course: list[Evaluation], *, number: int = 0, status: str = "FINISHED", early: bool = False
) -> RunRecord:
    tags = {EVALUATIONS: to_tag(course), TRIAL: str(number)}
    return RunRecord(
        run_id=f"{number}" * 32,
        name=f"#{number}",
        kind="trial",
        status=status,
        started=datetime(2026, 1, 1, tzinfo=UTC),
        tags=tags | ({STOPPED_EARLY: "after step 2 of 4"} if early else {}),
    )


def never(_: int) -> str:
    return ""


WHOLE = a_course(5, 4, 3, 2, 1)
BAD = a_course(9, 8.9, 8.8, kg=10)


def test_a_trial_is_ended_when_another_dominates_all_that_it_can_become() -> None:
    referee = Referee([a_record(WHOLE, number=7)], BOUND, never)
    assert referee.ends(BAD[:2]) == ""
    assert referee.ends(BAD).startswith("dominated by #7: at best ")
    assert referee.verdict is not None
    assert referee.verdict.saved_kg == pytest.approx(20)


def test_without_a_bound_no_trial_is_ended_for_being_dominated() -> None:
    referee = Referee([a_record(WHOLE)], None, never)
    assert referee.ends(BAD) == ""
    assert referee.verdict is None


def test_a_budget_comes_first_at_every_step_and_knows_how_many_validations_were_paid_for() -> None:
    asked = []

    def over(validations: int) -> str:
        asked.append(validations)
        return "the budget is spent" if len(asked) > 2 else ""

    referee = Referee([a_record(WHOLE)], BOUND, over)
    assert referee.ends(BAD[:1]) == ""
    assert referee.ends(BAD[:2]) == ""
    assert referee.ends(BAD) == "the budget is spent"
    assert referee.verdict is None
    assert asked == [0, 1, 2]


def test_dominance_is_judged_once_for_each_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    real, judged = dominance.judge, []

    def judge(course: list[Evaluation], *given: object, **named: object) -> object:
        judged.append(len(course))
        return real(course, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(dominance, "judge", judge)
    referee = Referee([a_record(WHOLE)], BOUND, never)
    said = [referee.ends(BAD[:validations]) for validations in (1, 1, 1, 2, 2, 3, 3)]
    assert judged == [1, 2, 3]
    assert said[:5] == [""] * 5
    assert said[5] == said[6] != ""


@pytest.mark.parametrize(
    "other",
    [
        a_record(WHOLE, status="RUNNING"),
        a_record(WHOLE, status="FAILED"),
        a_record(WHOLE[:3], early=True),
        a_record([]),
    ],
)
def test_what_did_not_run_to_its_end_is_no_evidence(other: RunRecord) -> None:
    assert Referee([other], BOUND, never).ends(BAD) == ""


def test_a_trial_that_was_ended_early_dominates_by_what_it_had_reached() -> None:
    others = [a_record(a_course(9, 8, 8, 8, 8, kg=99), number=1),
              a_record(WHOLE[:3], number=2, early=True)]  # fmt: skip
    assert Referee(others, BOUND, never).ends(BAD).startswith("dominated by #2")


def test_what_is_kept_is_on_the_front_of_the_others_and_of_its_own_course() -> None:
    referee = Referee([a_record(a_course(5, 4.5, 3.5, 2.5, 1.5))], None, never)
    course = a_course(5, 4, 3.9, 4.2, 1.6)
    assert [referee.keeps(course[:n]) for n in (2, 3, 4, 5)] == [True, False, False, False]


def test_an_equal_point_is_not_kept_a_second_time() -> None:
    referee = Referee([a_record(a_course(5, 4))], None, never)
    assert not referee.keeps(a_course(5, 4))
    assert referee.keeps(a_course(5, 3.999))


def test_what_was_there_before_the_first_step_is_nobodys_result() -> None:
    referee = Referee([a_record(a_course(3, 9))], None, never)
    assert referee.keeps(a_course(3, 4))
    assert not Referee([a_record(a_course(3, 9), status="RUNNING")], None, never).keeps(
        a_course(9, 5, 5)
    )


def test_an_ended_trial_is_imputed_from_how_the_finished_ones_went_on() -> None:
    referee = Referee([a_record(WHOLE), a_record(BAD, early=True)], None, never)
    loss, kg = referee.imputed(a_course(9, 8, 7, kg=3)) or (0, 0)
    assert loss == pytest.approx(7 - 2)  # from 3 to 1
    assert kg == pytest.approx(12)
    assert referee.imputed([]) is None
