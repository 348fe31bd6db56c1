"""The meter over fakes of constant power: what it counts is what is true, by phase and in all."""

import math
import os
import time
from contextlib import suppress

import pytest
from fakes import G_PER_KWH, JOULES_PER_KWH, NEVER_S, FakeClock, FakeMachine, running
from hypothesis import given, settings
from hypothesis import strategies as st

from green_tune import heartbeat
from green_tune.errors import Stopped
from green_tune.footprint import Basis
from green_tune.meter import Meter


class Pause(float):
    """Seconds for which the process is stopped from outside."""


# A schedule: seconds that pass, a pause, a signal, or a phase with a schedule inside.
Schedule = list["float | Pause | tuple[str, Schedule] | None"]
SECONDS = st.floats(0.001, 500)
PAUSE = st.floats(4 * NEVER_S, 9 * NEVER_S).map(Pause)
PHASE = st.sampled_from(["setup", "train", "eval", "save"])
SCHEDULE: st.SearchStrategy[Schedule] = st.recursive(
    st.lists(SECONDS | PAUSE | st.none(), max_size=4),
    lambda inner: st.lists(SECONDS | PAUSE | st.tuples(PHASE, inner) | st.none(), max_size=4),
    max_leaves=12,
)


def live(
    meter: Meter, clock: FakeClock, schedule: Schedule, truth: dict[str, float], at: str
) -> str:
    """Lives a schedule in phase `at`, notes the true seconds by phase, says which is next."""
    for step in schedule:
        if step is None:
            raise Stopped(15)
        if isinstance(step, float):
            stopped = isinstance(step, Pause)
            meter.read()  # the reading that came in the second before
            clock.pass_(step, cpus=not stopped)
            meter.read()
            name = "paused" if stopped else at
            truth[name] = truth.get(name, 0.0) + step
        else:
            name, inner = step
            with meter.phase(name):
                live(meter, clock, inner, truth, name)
            at = "between" if at == "setup" else at
    return at


@settings(deadline=None, max_examples=300)
@given(SCHEDULE)
def test_what_is_counted_is_what_is_true_over_any_phases_pauses_nesting_and_signals(
    schedule: Schedule,
) -> None:
    clock, truth = FakeClock(), dict[str, float]()
    with running(clock) as meter:
        with suppress(Stopped):
            live(meter, clock, schedule, truth, "setup")
        measurement, _ = meter.close()
    total, lived = measurement.total, sum(truth.values())
    counted = {name: part.runtime_h * 3600 for name, part in measurement.phases().items()}
    assert counted == pytest.approx(truth, rel=1e-9, abs=1e-13 * lived)
    assert total.runtime_h * 3600 == pytest.approx(lived, rel=1e-9)
    assert total.energy_kwh == pytest.approx(28 * lived / JOULES_PER_KWH, rel=1e-9)
    assert total.emissions_kg == pytest.approx(total.energy_kwh * 1.25 * 0.4, rel=1e-12)
    assert sum(part.energy_kwh for part in measurement.phases().values()) == total.energy_kwh
    assert sum(part.emissions_kg for part in measurement.phases().values()) == total.emissions_kg


def test_a_phase_inside_of_a_phase_is_taken_out_of_it_and_the_rest_lies_between() -> None:
    clock = FakeClock()
    with running(clock) as meter:
        clock.pass_(1)  # imports
        with meter.phase("setup"):
            clock.pass_(2)
        clock.pass_(0.25)
        with meter.phase("train"):
            clock.pass_(10)
            with meter.phase("eval"):
                clock.pass_(4)
            clock.pass_(20)
        with meter.phase("save"):
            clock.pass_(0.5)
        measurement, _ = meter.close()
    seconds = {name: part.runtime_h * 3600 for name, part in measurement.phases().items()}
    expected = {"setup": 3, "train": 30, "eval": 4, "save": 0.5, "between": 0.25}
    assert seconds == pytest.approx(expected)
    assert list(seconds) == ["setup", "train", "eval", "save", "between"]


def test_edges_wait_for_the_device_so_that_work_counts_where_it_was_asked_for() -> None:
    clock = FakeClock()
    queued = [0.0, 5.0]  # seconds of work under way at each edge

    def sync() -> None:
        clock.pass_(queued.pop(0))

    with running(clock) as meter:
        with meter.phase("train", sync):
            clock.pass_(1)
        measurement, _ = meter.close()
    assert measurement.phases()["train"].runtime_h * 3600 == pytest.approx(6)


def test_what_two_accounts_spend_in_turn_belongs_to_one_of_them_each() -> None:
    clock = FakeClock()
    with running(clock) as meter:
        clock.pass_(1)
        meter.open(checked=False)
        clock.pass_(10)
        trial, _ = meter.close()
        clock.pass_(2)
        outer, _ = meter.close()
        clock.pass_(100)  # belongs to nobody
    assert trial.total.runtime_h * 3600 == pytest.approx(10)
    assert outer.total.runtime_h * 3600 == pytest.approx(3)


def test_an_account_that_nobody_closed_falls_to_the_one_that_it_was_opened_in() -> None:
    clock = FakeClock()
    with running(clock) as meter:
        clock.pass_(1)
        with pytest.raises(Stopped), meter.account():
            clock.pass_(10)
            raise Stopped(15)
        with meter.account():
            clock.pass_(5)
            trial, _ = meter.close()
        clock.pass_(2)
        outer, _ = meter.close()
    assert trial.total.runtime_h * 3600 == pytest.approx(5)
    assert outer.total.runtime_h * 3600 == pytest.approx(13)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_other_programs_that_use_the_cpus_are_flagged_with_their_share(clock: FakeClock) -> None:
    cpus = os.cpu_count() or 1
    for share, flags in ((0.09, []), (0.4, ["other programs used 40% of the CPUs"])):
        with running(clock) as meter:
            clock.pass_(10, others=share * cpus)
            measurement, _ = meter.close()
        assert [flag.partition(", and")[0] for flag in measurement.flags] == flags


def test_processes_that_train_together_are_no_other_programs(clock: FakeClock) -> None:
    basis = Basis(g_per_kwh=G_PER_KWH)
    with Meter(FakeMachine(), None, basis, alone=False, clock=clock, interval_s=NEVER_S) as meter:
        meter.open(checked=False)
        clock.pass_(10, others=os.cpu_count() or 1)
        assert meter.close()[0].flags == []


def test_what_others_use_during_a_trial_is_not_laid_to_what_lies_around_it(
    clock: FakeClock,
) -> None:
    cpus = os.cpu_count() or 1
    with running(clock) as meter:
        clock.pass_(10)
        with meter.account():
            clock.pass_(100, others=0.5 * cpus)
            trial, _ = meter.close()
        clock.pass_(10)
        outer, _ = meter.close()
    assert trial.flags == ["other programs used 50% of the CPUs, and their energy is in it"]
    assert outer.flags == []


def test_a_clock_that_is_set_changes_no_figure_and_is_said(clock: FakeClock) -> None:
    with running(clock) as meter:
        clock.pass_(10)
        meter.read()
        clock.offset_s -= 7200
        clock.pass_(10)
        measurement, _ = meter.close()
    assert measurement.total.energy_kwh == pytest.approx(28 * 20 / JOULES_PER_KWH)
    assert [round(s.started_s - 1.8e9 - 1000) for s in measurement.segments] == [0]
    assert measurement.flags == ["clock set, time stamps not corrected, for 7200.0 s"]


def test_a_machine_that_was_suspended_is_not_charged_for_it(clock: FakeClock) -> None:
    with running(clock) as meter:
        clock.pass_(10)
        meter.read()
        clock.suspended_s += 3600
        clock.pass_(10)
        measurement, _ = meter.close()
    assert measurement.total.runtime_h * 3600 == pytest.approx(20)
    assert measurement.flags == ["suspended (not counted) for 3600.0 s"]


def test_a_reading_that_fails_makes_the_run_invalid_and_stops_nothing(clock: FakeClock) -> None:
    machine = FakeMachine()
    with Meter(machine, None, Basis(g_per_kwh=G_PER_KWH), clock=clock, interval_s=NEVER_S) as meter:
        meter.open(checked=False)
        clock.pass_(10)
        meter.read()
        machine.error = OSError("the sensor is gone")
        clock.pass_(10)
        measurement, _ = meter.close()
    assert measurement.faults == ["a reading failed: OSError: the sensor is gone"]
    assert measurement.total.energy_kwh == pytest.approx(28 * 10 / JOULES_PER_KWH)


def test_heartbeats_hold_all_that_was_spent_and_the_phases() -> None:
    with Meter(FakeMachine(), None, Basis(g_per_kwh=G_PER_KWH), interval_s=0.05) as meter:
        meter.open(checked=False)
        time.sleep(0.2)
        meter.keep("run")
        with meter.phase("train"):
            time.sleep(0.3)
        measurement, _ = meter.close()
    beaten = heartbeat.last("run")
    assert beaten is not None
    assert beaten.phases() == measurement.phases()
    assert beaten.basis == measurement.basis


def test_a_full_disk_under_the_heartbeats_is_said_once_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, full = heartbeat.beat, [True]

    def beat(*told: object) -> None:
        if full[0]:
            raise OSError(28, "No space left on device")
        real(*told)  # type: ignore[arg-type]

    monkeypatch.setattr(heartbeat, "beat", beat)
    with Meter(FakeMachine(), None, Basis(g_per_kwh=G_PER_KWH), interval_s=0.05) as meter:
        meter.open(checked=False)
        meter.keep("run")
        time.sleep(0.3)
        full[0] = False
        measurement, _ = meter.close()
    beaten = heartbeat.last("run")
    assert beaten is not None
    assert beaten.total == measurement.total
    assert caplog.text.count("No space left") == 1


def test_a_signal_in_the_middle_of_an_edge_tears_no_reading(clock: FakeClock) -> None:
    with running(clock) as meter:
        clock.pass_(1)

        def interrupted() -> None:
            raise Stopped(15)

        with pytest.raises(Stopped), meter.phase("train", interrupted):
            pass
        clock.pass_(1)
        measurement, _ = meter.close()
    assert math.isclose(measurement.total.runtime_h * 3600, 2)
