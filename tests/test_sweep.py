from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from green_tune import space as spaces
from green_tune import stop, worker
from green_tune.config import SweepConfig
from green_tune.errors import ConfigError, RunFailed, Stopped, StoreError
from green_tune.job import Job
from green_tune.sweep import Objectives, Space, open_study, run_sweep

MakeJob = Callable[..., Job]
SWEEP = SweepConfig(study="s")
SPACE = spaces.SPACE


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'optuna.db'}"


def formula(job: Job, number: int) -> Objectives:
    """Stands for a training: more examples cost more and teach more."""
    config = job.config
    examples = config.epochs * config.lora_rank
    return Objectives(val_loss=1 / examples, emissions_kg=examples / config.batch_size)


def sweep(
    job: Job,
    url: str,
    trials: int,
    experiment: Callable[[Job, int], Objectives] = formula,
    space: Space = SPACE,
    config: SweepConfig = SWEEP,
) -> optuna.Study:
    study = open_study(job, space, config, url)
    run_sweep(study, job, space, trials, experiment)
    return study


def states(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in study.trials]


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp"])
def test_trials_stay_inside_of_the_space_and_vary(
    make_job: MakeJob, url: str, sampler: str
) -> None:
    configs = []

    def note(job: Job, number: int) -> Objectives:
        configs.append(job.config)
        return formula(job, number)

    study = sweep(make_job(), url, 8, note, config=replace(SWEEP, sampler=sampler))
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

    def note(job: Job, number: int) -> Objectives:
        seen.append(job.config)
        return formula(job, number)

    _, space = spaces.split({"lora_rank": "32..64", "epochs": "2"})
    job = make_job(epochs=2)
    sweep(job, url, 1, note, space=space)
    assert seen[0].lora_rank in (32, 64)
    assert replace(seen[0], lora_rank=16) == job.config


def test_pinned_narrowed_and_listed_dimensions_are_kept_to(make_job: MakeJob, url: str) -> None:
    asked = {"batch_size": "8", "learning_rate": "1e-4..2e-4", "lora_rank": "3,5"}
    fixed, space = spaces.split(asked)
    seen = []

    def note(job: Job, number: int) -> Objectives:
        seen.append(job.config)
        return formula(job, number)

    job = make_job().with_config(replace(fixed, gpu="cpu"))
    sweep(job, url, 6, note, space=space)
    assert {config.batch_size for config in seen} == {8}
    assert {config.lora_rank for config in seen} <= {3, 5}
    assert all(1e-4 <= config.learning_rate <= 2e-4 for config in seen)


def test_a_trial_that_fails_is_counted_and_the_sweep_goes_on(make_job: MakeJob, url: str) -> None:
    def fail_second(job: Job, number: int) -> Objectives:
        if number == 1:
            raise RunFailed("the loss is nan")
        return formula(job, number)

    study = sweep(make_job(), url, 3, fail_second)
    assert states(study) == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]


@pytest.mark.parametrize("error", [Stopped(15), ValueError("a bug")])
def test_a_stop_or_a_bug_ends_the_sweep_with_its_trial_failed(
    make_job: MakeJob, url: str, error: BaseException
) -> None:
    def stop(job: Job, number: int) -> Objectives:
        raise error

    job = make_job()
    with pytest.raises(type(error)):
        sweep(job, url, 3, stop)
    assert states(optuna.load_study(study_name="s", storage=url)) == [TrialState.FAIL]


def test_a_resumed_study_runs_what_is_missing_and_proposes_anew(
    make_job: MakeJob, url: str
) -> None:
    job = make_job()
    sweep(job, url, 3)
    study = sweep(job, url, 6)
    assert len(study.trials) == 6
    proposals = {tuple(sorted(trial.params.items())) for trial in study.trials}
    assert len(proposals) == 6
    sweep(job, url, 6, experiment=lambda *_: pytest.fail("nothing was left to run"))


def test_a_trial_whose_process_died_before_it_could_say_which_is_failed_after_a_while(
    make_job: MakeJob, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    open_study(job, SPACE, SWEEP, url).ask()
    assert states(sweep(job, url, 2))[0] == TrialState.RUNNING  # it may be about to say it
    monkeypatch.setattr("green_tune.sweep.UNNAMED", timedelta(0))
    assert states(sweep(job, url, 3))[0] == TrialState.FAIL


def test_a_trial_of_a_dead_process_is_failed_and_replaced(make_job: MakeJob, url: str) -> None:
    job = make_job()
    study = open_study(job, SPACE, SWEEP, url)
    study.ask().set_user_attr("worker", "")  # of a worker that we cannot judge
    dead = study.ask()
    dead.set_user_attr("worker", f"{worker.this().rsplit(':', 2)[0]}:1:0")
    study = sweep(job, url, 3)
    assert states(study)[:2] == [TrialState.RUNNING, TrialState.FAIL]
    assert states(study).count(TrialState.COMPLETE) == 1  # another worker runs the third


def test_a_study_is_not_resumed_with_another_task_model_data_or_space(
    make_job: MakeJob, url: str
) -> None:
    sweep(make_job(), url, 1)
    with pytest.raises(ConfigError, match="task=sentiment, now it is qa"):
        sweep(make_job(task="qa"), url, 2)
    with pytest.raises(ConfigError, match="max_seq_len=512, now it is 256"):
        sweep(make_job(max_seq_len=256), url, 2)
    narrowed = {k: v for k, v in SPACE.items() if k != "epochs"}
    with pytest.raises(ConfigError, match=r"epochs=1\.\.3, now it is 1"):
        sweep(make_job(), url, 2, space=narrowed)


def test_a_worker_beside_another_proposes_something_else(make_job: MakeJob, url: str) -> None:
    job = make_job()
    first = open_study(job, SPACE, SWEEP, url)
    first.ask().set_user_attr("worker", "elsewhere")
    sweep(job, url, 3)
    alone = sweep(job, url.replace("optuna", "alone"), 3)
    trials = optuna.load_study(study_name="s", storage=url).trials
    assert trials[1].params != alone.trials[1].params


def test_a_stop_that_python_dropped_ends_the_sweep_before_the_next_trial(
    make_job: MakeJob, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "_asked", [15])
    with pytest.raises(Stopped, match="SIGTERM"):
        sweep(make_job(), url, 3)


def test_the_first_sweep_of_a_seed_can_be_repeated(make_job: MakeJob, tmp_path: Path) -> None:
    studies = [sweep(make_job(), f"sqlite:///{tmp_path / name}", 3) for name in ("a.db", "b.db")]
    assert [t.params for t in studies[0].trials] == [t.params for t in studies[1].trials]


def test_storage_that_cannot_be_used_is_one_clear_line(make_job: MakeJob) -> None:
    with pytest.raises(StoreError, match="storage cannot be used") as caught:
        open_study(make_job(), SPACE, SWEEP, "nonsense://x")
    assert "\n" not in str(caught.value)
