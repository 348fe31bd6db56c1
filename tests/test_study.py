"""A trial's life in a study that several workers share: nothing is lost, nothing counts twice."""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from postgres import Postgres
from sqlalchemy.exc import OperationalError

from green_tune import encoding, storage, store, study, worker
from green_tune.errors import ConfigError, StoreError
from green_tune.space import SPACE
from green_tune.study import ATTEMPTS, IMPUTED, REFUSALS, Outcome, Settle, Study, Trial, open_study

DEAD = f"{worker.this().rsplit(':', 2)[0]}:1:0"  # process 1 lives, but did not start at tick 0
ELSEWHERE = "another machine:7:7"
OUTCOME = Outcome(val_loss=1.0, emissions_kg=2.0)
USUAL = {"epochs": 1, "lora_rank": 8, "batch_size": 4}
TOTAL = 10

WORK = """
import os, sys
count = 8
for _ in range(count):
    if not os.fork():
        break
else:
    sys.exit(any([os.wait()[1] for _ in range(count)]))
from green_tune.space import SPACE
from green_tune.study import Outcome, open_study
own = open_study(sys.argv[1], "s", SPACE, identity={"task": "qa"}, sampler="tpe", seed=0, start=3)
while not isinstance(trial := own.claim(12, lambda run: None, lambda values: ""), str):
    cost = trial.values["epochs"] * trial.values["lora_rank"]
    own.tell(trial, Outcome(val_loss=1 / cost, emissions_kg=cost))
"""

CLAIM = """
import sys, time
from green_tune.space import SPACE
from green_tune.study import open_study
own = open_study(sys.argv[1], "s", SPACE, identity={"task": "qa"}, sampler="random", seed=0)
own.note(own.claim(10, lambda run: None, lambda values: ""), "its run")
print("claimed", flush=True)
time.sleep(600)
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'optuna.db'}"


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FIRST_WAIT_S", 0.0)


def a_study(url: str, **changed: Any) -> Study:
    given: dict[str, Any] = {"identity": {"task": "qa"}, "sampler": "random", "seed": 0}
    return open_study(url, "s", SPACE, **(given | changed))


def unsettled(_: str) -> Outcome | None:
    return None


def admitted(_: Mapping[str, Any]) -> str:
    return ""


def claimed(own: Study, settle: Settle = unsettled) -> Trial:
    trial = own.claim(TOTAL, settle, admitted)
    assert isinstance(trial, Trial)
    return trial


def killed(own: Study, monkeypatch: pytest.MonkeyPatch, who: str = DEAD, run: str = "") -> Trial:
    """A trial that a worker had begun when it was killed."""
    with monkeypatch.context() as patch:
        patch.setattr(worker, "this", lambda: who)
        trial = claimed(own)
    if run:
        own.note(trial, run)
    trial.lease.close()
    return trial


def lose(own: Study, monkeypatch: pytest.MonkeyPatch, settle: Settle = unsettled) -> Trial | str:
    """The next claim, of a worker to whom all leases are over."""
    with monkeypatch.context() as patch:
        patch.setattr(storage, "LEASE_S", -1.0)
        patch.setattr(worker, "is_alive", lambda identity: False)  # as from elsewhere
        return own.claim(TOTAL, settle, admitted)


def trials(url: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name="s", storage=storage.open_storage(url)).trials


def states(url: str) -> list[str]:
    return [trial.state.name for trial in trials(url)]


def fail_at(calls: Iterable[int], real: Any, error: BaseException, *, after: bool = False) -> Any:
    """`real`, whose calls of these numbers (from 1) raise an error, before or after they act."""
    failing, number = set(calls), itertools.count(1)

    def call(*given: Any, **named: Any) -> Any:
        fails = next(number) in failing
        if fails and not after:
            raise error
        result = real(*given, **named)
        if fails:
            raise error
        return result

    return call


def away() -> OperationalError:
    return OperationalError("SELECT 1", {}, Exception("the server is down"))


def test_a_trial_of_a_killed_process_is_tried_again_at_once_and_not_counted(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = a_study(url)
    first = killed(own, monkeypatch, run="run of the first")
    again = claimed(own)
    assert again.values == first.values
    assert again.retry_of == "run of the first"
    own.tell(again, OUTCOME)
    assert states(url) == ["FAIL", "COMPLETE"]
    assert own.missing(TOTAL) == TOTAL - 1
    assert own.failures() is None


def test_a_trial_that_takes_its_worker_with_it_is_tried_three_times_and_then_counts_as_failed(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = a_study(file)
    tried = [killed(own, monkeypatch, run=f"run {n}") for n in range(ATTEMPTS)]
    assert all(trial.values == tried[0].values for trial in tried)
    assert [trial.retry_of for trial in tried] == ["", "run 0", "run 1"]
    another = claimed(own)
    assert another.values != tried[0].values
    assert another.retry_of == ""
    assert own.missing(TOTAL) == TOTAL - 2
    assert own.failures() == ["its worker died"]


def test_a_trial_of_another_machine_is_tried_again_only_when_its_lease_is_over(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = a_study(url)
    first = killed(own, monkeypatch, ELSEWHERE, run="theirs")
    other = claimed(own)
    assert other.values != first.values
    assert own.missing(TOTAL) == TOTAL - 2  # it is taken as still under way
    own.tell(other, OUTCOME)
    again = lose(own, monkeypatch)
    assert isinstance(again, Trial)
    assert (again.values, again.retry_of) == (first.values, "theirs")


def test_a_trial_that_nobody_had_put_a_name_to_is_dropped_when_its_lease_is_over(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = a_study(file)
    own._study.ask()  # and killed, before it said whose it is
    other = claimed(own)
    assert other.number == 1
    own.tell(other, OUTCOME)
    assert isinstance(new := lose(own, monkeypatch), Trial)
    assert new.retry_of == ""
    assert states(file) == ["FAIL", "COMPLETE", "RUNNING"]
    assert own.missing(TOTAL) == TOTAL - 2


def test_a_worker_that_is_killed_while_it_proposes_leaves_nothing_that_is_waited_for(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = a_study(file)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(worker, "this", lambda: DEAD)
        patch.setattr(
            own._study.sampler, "sample_relative", fail_at([1], None, KeyboardInterrupt())
        )
        claimed(own)
    claimed(own)
    assert states(file) == ["FAIL", "RUNNING"]
    assert own.missing(TOTAL) == TOTAL - 1


def test_a_queued_trial_whose_worker_died_before_it_began_keeps_its_place(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = a_study(file, first=lambda: [USUAL])
    own._study.ask()  # and killed, before it took its values
    assert isinstance(again := lose(own, monkeypatch), Trial)
    assert again.values.items() >= USUAL.items()


def test_a_second_attempt_that_never_began_keeps_the_first_ones_run(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = a_study(file)
    first = killed(own, monkeypatch, run="the first one's")
    killed(own, monkeypatch)  # before it had a run
    third = claimed(own)
    assert (third.values, third.retry_of) == (first.values, "the first one's")


def test_a_trial_that_had_ended_when_its_worker_was_killed_is_told_and_not_tried_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = a_study(url)
    first = killed(own, monkeypatch, run="ended")
    new = claimed(own, lambda run: OUTCOME if run == "ended" else None)
    assert new.values != first.values
    assert states(url) == ["COMPLETE", "RUNNING"]
    assert trials(url)[0].values == [1.0, 2.0]
    assert own.missing(TOTAL) == TOTAL - 2


def test_who_is_stopped_after_its_trial_had_ended_tells_it(file: str) -> None:
    own = a_study(file)
    trial = claimed(own)
    own.note(trial, "its run")
    asked: list[str] = []

    def ended(run_id: str) -> Outcome:
        asked.append(run_id)
        return OUTCOME

    own.give_up(trial, "stopped", ended)
    assert asked == ["its run"]
    assert states(file) == ["COMPLETE"]
    assert own.missing(TOTAL) == TOTAL - 1


def test_what_a_settled_trial_would_have_reached_is_kept_for_the_sampler(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = a_study(file)
    killed(own, monkeypatch, run="stopped early")
    ended = Outcome(val_loss=1.0, emissions_kg=2.0, imputed=(0.5, 4.0))
    claimed(own, lambda run: ended if run == "stopped early" else None)
    told = trials(file)[0]
    assert told.values == [1.0, 2.0]
    assert told.user_attrs[IMPUTED] == [0.5, 4.0]


@pytest.mark.parametrize("step", ["set_trial_user_attr", "set_trial_state_values"])
def test_whoever_gives_a_trial_back_may_be_killed_over_it(
    file: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    own = a_study(file)
    first = killed(own, monkeypatch, run="theirs")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        real = getattr(own._study._storage, step)
        patch.setattr(own._study._storage, step, fail_at([1], real, KeyboardInterrupt()))
        claimed(own)
    again = claimed(a_study(file))
    assert (again.values, again.retry_of) == (first.values, "theirs")
    assert states(file) == ["FAIL", "RUNNING"]
    assert claimed(own).values != first.values


def test_a_result_that_comes_after_its_trial_was_given_back_counts_once(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = a_study(url), a_study(url)
    slow = claimed(own)
    own.note(slow, "slow")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "LEASE_S", -1.0)
        patch.setattr(worker, "is_alive", lambda identity: False)  # as from elsewhere
        other._settle_lost(unsettled)
    assert states(url) == ["FAIL", "WAITING"]
    own.tell(slow, Outcome(val_loss=1.0, emissions_kg=2.0, imputed=(0.5, 4.0)))
    assert states(url) == ["FAIL", "FAIL", "COMPLETE"]
    kept = trials(url)[2]
    assert kept.values == [1.0, 2.0]
    assert kept.params == trials(url)[0].params
    assert kept.user_attrs[IMPUTED] == [0.5, 4.0]
    assert own.missing(TOTAL) == TOTAL - 1
    assert claimed(other).values != slow.values


def test_a_result_that_was_settled_by_another_worker_meanwhile_counts_once(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = a_study(file), a_study(file)
    slow = claimed(own)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "LEASE_S", -1.0)
        patch.setattr(worker, "is_alive", lambda identity: False)  # as from elsewhere
        other._settle_lost(lambda run: OUTCOME)
    own.tell(slow, OUTCOME)
    assert states(file) == ["COMPLETE"]


def test_a_failure_that_comes_after_its_trial_was_given_back_does_not_end_the_sweep(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = a_study(file), a_study(file)
    slow = [claimed(own), claimed(own)]
    with monkeypatch.context() as patch:
        patch.setattr(storage, "LEASE_S", -1.0)
        patch.setattr(worker, "is_alive", lambda identity: False)  # as from elsewhere
        other._settle_lost(unsettled)
    own.fail(slow[0], "it diverged")
    own.give_up(slow[1], "stopped", unsettled)
    assert states(file) == ["FAIL", "FAIL", "WAITING", "WAITING"]


def test_eight_processes_at_once_run_as_many_trials_as_were_asked_for_all_different(
    url: str,
) -> None:
    env = os.environ | {"PYTHONPATH": str(Path(study.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", WORK, url], env=env, check=True, timeout=300)
    found = trials(url)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 12
    assert len({tuple(sorted(trial.params.items())) for trial in found}) == 12


def test_what_is_too_dear_is_not_counted_and_the_last_reason_is_given(file: str) -> None:
    own = a_study(file)
    asked: list[Mapping[str, Any]] = []

    def refuse(values: Mapping[str, Any]) -> str:
        if not values:
            return ""  # something is left, for cheaper ones
        asked.append(values)
        return f"too dear: {len(asked)}"

    assert own.claim(TOTAL, unsettled, refuse) == f"too dear: {REFUSALS}"
    assert own.missing(TOTAL) == TOTAL
    assert states(file) == ["FAIL"] * REFUSALS
    assert own.failures() == []
    assert own.claim(0, unsettled, refuse) == ""
    assert len(asked) == REFUSALS


def test_where_nothing_is_left_nothing_is_proposed(file: str) -> None:
    own = a_study(file)
    own.enqueue([USUAL])
    assert own.claim(TOTAL, unsettled, lambda values: "nothing is left") == "nothing is left"
    assert states(file) == ["WAITING"]


def test_what_was_asked_for_is_queued_once_but_again_where_it_was_too_dear(file: str) -> None:
    own = a_study(file)
    asked = [USUAL | {"epochs": epochs} for epochs in (1, 2)]
    assert own.enqueue(asked) == own.enqueue(asked[:1]) == own.enqueue([*asked, *asked]) == 2
    own.tell(claimed(own), OUTCOME)
    dear = lambda values: "too dear" if values.get("epochs") == 2 else ""  # noqa: E731
    assert own.claim(TOTAL, unsettled, dear) == "too dear"
    assert a_study(file).enqueue(asked) == 2
    assert claimed(own).values["epochs"] == 2


def test_a_worker_sees_who_else_is_at_work_but_neither_itself_nor_the_dead(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = a_study(file)
    killed(own, monkeypatch, ELSEWHERE)
    claimed(own)
    killed(own, monkeypatch, DEAD)
    assert own.others() == [ELSEWHERE]


IDENTITY = {"task": "qa", "model": "tiny", "data": "ab12", "epochs": "1..3"}


@pytest.mark.parametrize("name", IDENTITY)
def test_a_study_of_something_else_is_not_joined(file: str, name: str) -> None:
    a_study(file, identity=IDENTITY)
    with pytest.raises(ConfigError) as caught:
        a_study(file, identity=IDENTITY | {name: "other"})
    said = str(caught.value)
    assert said.startswith(f"study s was made with {name}={IDENTITY[name]}, now it is other; ")
    assert "\n" not in said
    a_study(file, identity=IDENTITY)


@pytest.mark.parametrize("directions", [["minimize"], ["minimize", "maximize"], ["minimize"] * 3])
def test_a_study_of_other_objectives_is_not_joined(file: str, directions: list[Any]) -> None:
    opened = storage.open_storage(file)
    optuna.create_study(storage=opened, study_name="s", directions=directions)
    with pytest.raises(ConfigError, match="has other objectives than val_loss and emissions_kg"):
        a_study(file)


def test_a_study_of_another_program_is_not_joined_nor_changed(file: str) -> None:
    opened = storage.open_storage(file)
    theirs = optuna.create_study(storage=opened, study_name="s", directions=["minimize"] * 2)
    theirs.ask()
    with pytest.raises(ConfigError, match="made by another program; give another study name"):
        a_study(file)
    assert theirs.user_attrs == {}
    assert len(theirs.trials) == 1


def test_a_result_waits_for_a_database_that_is_away(
    file: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = a_study(file)
    trial = claimed(own)
    monkeypatch.setattr(own._study, "tell", fail_at([1, 2], own._study.tell, away()))
    own.tell(trial, OUTCOME)
    assert trials(file)[0].values == [1.0, 2.0]
    assert len(caplog.messages) == 2


def test_a_server_that_is_away_for_a_while_costs_no_result_and_ends_no_sweep(
    postgres: Postgres,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(store, "FIRST_WAIT_S", 0.1)
    monkeypatch.setenv("GREEN_TUNE_PATIENCE_S", "60")
    own = a_study(postgres_url)
    trial = claimed(own)
    for use in (lambda: own.tell(trial, OUTCOME), lambda: claimed(own)):
        caplog.clear()
        postgres.stop()
        using = threading.Thread(target=use, daemon=True)
        using.start()
        until_s = time.monotonic() + 30
        while "the study's storage does not answer" not in caplog.text:
            assert time.monotonic() < until_s
            time.sleep(0.05)
        postgres.start()  # by the thread that outlives it
        using.join(60)
    assert states(postgres_url) == ["COMPLETE", "RUNNING"]


def test_a_process_that_is_killed_leaves_its_trial_to_the_next_one_at_once(file: str) -> None:
    own = a_study(file)
    command = [sys.executable, "-c", CLAIM, file]
    env = os.environ | {"PYTHONPATH": str(Path(study.__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "claimed\n"
        own.tell(claimed(own), OUTCOME)  # while it lives
        assert states(file) == ["RUNNING", "COMPLETE"]
        child.kill()
    again = claimed(own)
    assert again.retry_of == "its run"
    assert encoding.encode(again.values, SPACE) == trials(file)[0].params


def test_a_result_of_which_only_the_answer_was_lost_counts_once(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = a_study(file)
    trial = claimed(own)
    monkeypatch.setattr(own._study, "tell", fail_at([1], own._study.tell, away(), after=True))
    own.tell(trial, OUTCOME)
    assert states(file) == ["COMPLETE"]


def test_a_result_beside_its_trial_of_which_only_the_answer_was_lost_counts_once(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = a_study(file)
    trial = claimed(own)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "LEASE_S", -1.0)
        patch.setattr(worker, "is_alive", lambda identity: False)  # as from elsewhere
        own._settle_lost(unsettled)
    add = own._study.add_trial
    monkeypatch.setattr(own._study, "add_trial", fail_at([1], add, away(), after=True))
    own.tell(trial, OUTCOME)
    assert states(file) == ["FAIL", "FAIL", "COMPLETE"]


def test_a_failure_waits_for_a_database_that_is_away(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = a_study(file)
    trial = claimed(own)
    monkeypatch.setattr(own._study, "tell", fail_at([1], own._study.tell, away()))
    own.fail(trial, "it diverged")
    assert states(file) == ["FAIL"]
    assert own.failures() == ["it diverged"]


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_database_that_is_away_while_a_trial_is_claimed_leaves_none_that_nobody_runs(
    file: str, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    own = a_study(file)
    real = own._study._storage.set_trial_param
    monkeypatch.setattr(own._study._storage, "set_trial_param", fail_at([call], real, away()))
    trial = claimed(own)
    assert len(trial.values) == len(SPACE)
    assert states(file) == ["RUNNING"]


def test_a_database_that_stays_away_is_given_up(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = a_study(file)
    trial = claimed(own)
    monkeypatch.setenv("GREEN_TUNE_PATIENCE_S", "0")
    monkeypatch.setattr(own._study, "tell", fail_at(range(1, 99), own._study.tell, away()))
    with pytest.raises(StoreError, match="does not answer"):
        own.tell(trial, OUTCOME)
    assert not trial.lease._exit_callbacks  # type: ignore[attr-defined]  # no more heartbeats


def test_who_is_stopped_while_the_database_is_away_leaves_its_trial_to_the_next(
    file: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = a_study(file)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "this", lambda: DEAD)
        trial = claimed(own)
        patch.setattr(own._study, "enqueue_trial", fail_at([1], None, away()))
        own.give_up(trial, "stopped", unsettled)
    assert "trial 0 is left to the next worker" in caplog.text
    assert claimed(own).values == trial.values


def test_the_first_trials_are_queued_once_though_who_queued_them_was_killed(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [USUAL | {"epochs": epochs} for epochs in (3, 2, 1)]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        real = optuna.Study.enqueue_trial
        patch.setattr(optuna.Study, "enqueue_trial", fail_at([2], real, KeyboardInterrupt()))
        a_study(file, first=lambda: first)
    a_study(file, first=lambda: first)
    own = a_study(file, first=lambda: first)
    assert [claimed(own).values["epochs"] for _ in range(3)] == [3, 2, 1]
    assert states(file) == ["RUNNING"] * 3


def test_who_joins_a_study_goes_on_with_the_start_it_was_made_with(file: str) -> None:
    a_study(file, start=4, first=lambda: [USUAL])
    joined = a_study(file, start=9, first=lambda: pytest.fail("asked of a study that is there"))
    assert joined._study.user_attrs[study.START] == 4


def test_proposals_depend_on_the_seed_and_not_on_who_asks(file: str, tmp_path: Path) -> None:
    def proposed(name: str, seed: int, workers: int) -> list[Mapping[str, Any]]:
        url = f"sqlite:///{tmp_path / name}"
        each = itertools.cycle([a_study(url, seed=seed) for _ in range(workers)])
        return [claimed(next(each)).values for _ in range(4)]

    assert proposed("a.db", 0, 1) == proposed("b.db", 0, 2)
    assert proposed("c.db", 1, 1) != proposed("d.db", 0, 1)


def test_all_workers_know_the_studys_run(file: str) -> None:
    own, other = a_study(file), a_study(file)
    assert other.parent_run == ""
    assert own.adopt("run 7") == "run 7"
    assert other.adopt("run 8") == "run 7"  # it was slower
    assert other.parent_run == a_study(file).parent_run == "run 7"
    assert other.adopt("run 9", instead_of="run 7") == "run 9"  # the other was deleted
    assert own.parent_run == "run 9"
