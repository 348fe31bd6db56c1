"""The order of things in a sweep, with a formula for a training and a real study in SQLite."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from entrypoints import sweep as command
from green_tune import earlier, repeats, stop
from green_tune import space as spaces
from green_tune.config import SweepConfig
from green_tune.errors import RunFailed, Stopped
from green_tune.job import Job
from green_tune.space import Space
from green_tune.study import Outcome, Refuse, Study, Trial, open_study
from green_tune.sweep import configured, everything_admitted, identity, nothing_settled, run_sweep

MakeJob = Callable[..., Job]
SPACE = spaces.SPACE
PINNED = {"batch_size": "8", "accumulation_steps": "1", "learning_rate": "1e-3",
          "warmup_steps": "0", "epochs": "1"}  # fmt: skip


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'optuna.db'}"


def formula(job: Job, trial: Trial) -> Outcome:
    """Stands for a training: more examples cost more and teach more."""
    config = job.config
    examples = config.epochs * config.lora_rank
    return Outcome(val_loss=1 / examples, emissions_kg=examples / config.batch_size)


def opened(job: Job, url: str, space: Space = SPACE, sampler: str = "tpe") -> Study:
    return open_study(
        url,
        "s",
        space,
        identity=identity(job, space),
        sampler=sampler,
        seed=job.config.seed,
        start=3,
        first=lambda: [earlier.usual(space)],
    )


def run(
    job: Job,
    url: str,
    trials: int,
    experiment: Callable[[Job, Trial], Outcome] = formula,
    *,
    space: Space = SPACE,
    sampler: str = "tpe",
    refuse: Refuse = everything_admitted,
) -> optuna.Study:
    study = opened(job, url, space, sampler)
    one = lambda trial: experiment(configured(job, trial), trial)  # noqa: E731
    run_sweep(study, trials, one, nothing_settled, refuse)
    return optuna.load_study(study_name="s", storage=url)


def states(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in study.trials]


@pytest.mark.parametrize("sampler", ["green", "gp", "tpe", "nsga2", "random", "grid"])
def test_trials_stay_inside_of_the_space_and_vary(
    make_job: MakeJob, url: str, sampler: str
) -> None:
    configs = []

    def note(job: Job, trial: Trial) -> Outcome:
        configs.append(job.config)
        return formula(job, trial)

    study = run(make_job(), url, 8, note, sampler=sampler)
    assert states(study) == [TrialState.COMPLETE] * 8
    for name, dimension in SPACE.items():
        values = [getattr(config, name) for config in configs]
        assert all(dimension.low <= value <= dimension.high for value in values)
        assert len(set(values)) > 1
    assert {config.batch_size for config in configs} <= {2, 4, 8, 16, 32}


def test_the_first_trial_is_what_train_would_do_as_far_as_the_space_allows(
    make_job: MakeJob, url: str
) -> None:
    seen = []

    def note(job: Job, trial: Trial) -> Outcome:
        seen.append(job.config)
        return formula(job, trial)

    _, space = spaces.split({"lora_rank": "32..64", "epochs": "2"})
    job = make_job(epochs=2)
    run(job, url, 1, note, space=space)
    assert seen[0].lora_rank in (32, 64)
    assert replace(seen[0], lora_rank=16) == job.config


def test_pinned_narrowed_and_listed_dimensions_are_kept_to(make_job: MakeJob, url: str) -> None:
    asked = {"batch_size": "8", "learning_rate": "1e-4..2e-4", "lora_rank": "3,5"}
    fixed, space = spaces.split(asked)
    seen = []

    def note(job: Job, trial: Trial) -> Outcome:
        seen.append(job.config)
        return formula(job, trial)

    job = make_job().with_config(replace(fixed, gpu="cpu"))
    run(job, url, 6, note, space=space)
    assert {config.batch_size for config in seen} == {8}
    assert {config.lora_rank for config in seen} == {3, 5}
    assert all(1e-4 <= config.learning_rate <= 2e-4 for config in seen)


def test_a_trial_that_fails_is_counted_and_the_sweep_goes_on(make_job: MakeJob, url: str) -> None:
    def fail_second(job: Job, trial: Trial) -> Outcome:
        if trial.number == 1:
            raise RunFailed("the loss is nan")
        return formula(job, trial)

    study = run(make_job(), url, 3, fail_second)
    assert states(study) == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[1].user_attrs["reason"] == "the loss is nan"


def test_a_sweep_whose_first_trials_all_fail_ends_and_says_why(make_job: MakeJob, url: str) -> None:
    def fail(job: Job, trial: Trial) -> Outcome:
        raise RunFailed(f"trial {trial.number} does not fit")

    with pytest.raises(RunFailed, match="first 3 trials all failed, the last one: trial 2 does"):
        run(make_job(), url, 10, fail)


def test_failures_after_a_success_do_not_end_a_sweep(make_job: MakeJob, url: str) -> None:
    def fail(job: Job, trial: Trial) -> Outcome:
        if trial.number:
            raise RunFailed("no")
        return formula(job, trial)

    assert states(run(make_job(), url, 6, fail)) == [TrialState.COMPLETE] + [TrialState.FAIL] * 5


@pytest.mark.parametrize("error", [Stopped(15), ValueError("a bug")])
def test_a_stop_or_a_bug_ends_the_sweep_and_its_trial_is_tried_again(
    make_job: MakeJob, url: str, error: BaseException
) -> None:
    def stop_first(job: Job, trial: Trial) -> Outcome:
        raise error

    job = make_job()
    with pytest.raises(type(error)):
        run(job, url, 3, stop_first)
    seen = []

    def note(job: Job, trial: Trial) -> Outcome:
        seen.append(trial)
        return formula(job, trial)

    study = run(job, url, 3, note)
    assert states(study) == [TrialState.FAIL] + [TrialState.COMPLETE] * 3
    assert study.trials[1].params == study.trials[0].params
    assert len(seen) == 3


def test_what_ends_its_worker_each_time_is_tried_three_times_and_no_more(
    make_job: MakeJob, url: str
) -> None:
    def crash(job: Job, trial: Trial) -> Outcome:
        raise ValueError("a bug")

    job = make_job()
    for _ in range(3):
        with pytest.raises(ValueError, match="a bug"):
            run(job, url, 2, crash)
    study = run(job, url, 2)
    assert states(study) == [TrialState.FAIL] * 3 + [TrialState.COMPLETE]


def test_a_resumed_study_runs_what_is_missing_and_proposes_anew(
    make_job: MakeJob, url: str
) -> None:
    job = make_job()
    run(job, url, 3)
    study = run(job, url, 6)
    assert len(study.trials) == 6
    assert len({tuple(sorted(trial.params.items())) for trial in study.trials}) == 6
    run(job, url, 6, experiment=lambda *_: pytest.fail("nothing was left to run"))


def test_a_sweep_that_was_resumed_proposes_what_an_uninterrupted_one_does(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job, whole, parts = make_job(), tmp_path / "whole.db", tmp_path / "parts.db"
    uninterrupted = run(job, f"sqlite:///{whole}", 6, sampler="green")
    for trials in (2, 5, 6):
        resumed = run(job, f"sqlite:///{parts}", trials, sampler="green")
    assert [t.params for t in resumed.trials] == [t.params for t in uninterrupted.trials]


def test_proposals_that_are_too_dear_are_not_started(make_job: MakeJob, url: str) -> None:
    ran = []

    def note(job: Job, trial: Trial) -> Outcome:
        ran.append(trial.values["epochs"])
        return formula(job, trial)

    def refuse(values: Mapping[str, Any]) -> str:
        return "too dear" if values.get("epochs", 1) > 1 else ""

    study = run(make_job(), url, 6, note, refuse=refuse, sampler="random")
    assert set(ran) == {1}
    refused = [trial for trial in study.trials if trial.user_attrs.get("too_dear")]
    assert refused
    assert all(trial.state == TrialState.FAIL for trial in refused)


def test_a_sweep_that_nothing_is_cheap_enough_for_says_why_it_ended(
    make_job: MakeJob, url: str
) -> None:
    study = opened(make_job(), url)
    fail = lambda *_: pytest.fail("was started")  # noqa: E731
    why = run_sweep(study, 5, fail, nothing_settled, lambda _: "0.1 kg are left")
    assert why == "0.1 kg are left"
    assert study.missing(5) == 5


def test_a_stop_that_python_dropped_ends_the_sweep_before_the_next_trial(
    make_job: MakeJob, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "_asked", [15])
    with pytest.raises(Stopped, match="SIGTERM"):
        run(make_job(), url, 3)


def test_the_first_sweep_of_a_seed_can_be_repeated_and_another_seed_differs(
    make_job: MakeJob, tmp_path: Path
) -> None:
    def params(name: str, seed: int) -> list[dict[str, float]]:
        return [
            t.params for t in run(make_job(seed=seed), f"sqlite:///{tmp_path / name}", 4).trials
        ]

    assert params("a.db", 0) == params("b.db", 0)
    assert params("c.db", 1) != params("a.db", 0)


def test_failed_trials_are_said(
    make_job: MakeJob, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail_second(job: Job, trial: Trial) -> Outcome:
        if trial.number == 1:
            raise RunFailed("the loss is nan")
        return formula(job, trial)

    with caplog.at_level(logging.WARNING):
        run(make_job(), url, 2, fail_second)
    assert "trial 1 failed: the loss is nan" in caplog.text


def test_repeats_that_are_too_dear_end_with_the_reason_and_no_other_is_proposed(url: str) -> None:
    again = open_study(url, "s/repeats", repeats.SPACE, identity={"study": "s"})
    pairs = [{"trial": number, "seed": 1} for number in (0, 1)]
    refused: list[int] = []

    def refuse(values: Mapping[str, Any]) -> str:
        if not values:
            return ""
        refused.append(values["trial"])
        return "too dear"

    fail = lambda *_: pytest.fail("was started")  # noqa: E731
    why = run_sweep(again, again.enqueue(pairs), fail, nothing_settled, refuse)
    assert why == "too dear"
    assert refused == [0]  # it is back in the queue, for a larger budget


def test_a_grid_ends_with_its_last_point() -> None:
    _, space = spaces.split({**PINNED, "lora_rank": "4,8"})
    assert command.total_trials(SweepConfig(trials=10, sampler="grid"), space) == 2
    assert command.total_trials(SweepConfig(trials=1, sampler="grid"), space) == 1
    assert command.total_trials(SweepConfig(trials=10, sampler="tpe"), space) == 10
