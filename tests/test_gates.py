import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from green_tune.footprint import AMOUNTS, PHASES, Basis, Measurement, Segment
from green_tune.gates import FACTS, failures

METHODS = {"cpu": "measured (RAPL)", "gpu": "measured (NVML counter)", "ram": "modelled (DIMMs)"}
NO_GPU = {**METHODS, "cpu": "modelled (load x TDP)", "gpu": "none"}
BASIS = Basis(g_per_kwh=369.473, methods=METHODS, pue=1.2)
LIMIT_W, IDLE_W = 300.0, 50.0
DRAWN_W = {"setup": 60.0, "train": 250.0, "eval": 200.0}


def segment(
    phase: str, seconds: float, gpu_w: float, busy: float = 0.95, **changed: Any
) -> Segment:
    hours = seconds / 3600
    gpu_kwh = gpu_w * hours / 1000
    amounts: dict[str, Any] = {
        "runtime_h": hours, "energy_cpu_kwh": 0.05 * hours, "energy_gpu_kwh": gpu_kwh,
        "energy_ram_kwh": 0.01 * hours, "gpu_counted_kwh": gpu_kwh, "gpu_sampled_kwh": gpu_kwh,
        "gpu_busy_h": busy * hours,
    }  # fmt: skip
    return Segment(phase=phase, started_s=1.8e9, **(amounts | changed))


def checked(*segments: Segment, basis: Basis = BASIS, **facts: float) -> Measurement:
    """A measurement whose facts agree with its segments, except where they are given."""
    cpu, gpu, ram, hours = (
        math.fsum(getattr(s, name) for s in segments)
        for name in ("energy_cpu_kwh", "gpu_counted_kwh", "energy_ram_kwh", "runtime_h")
    )
    kwh = facts.get("energy_kwh", cpu + facts.get("energy_gpu_kwh", gpu) + ram)
    totals = {
        "runtime_h": hours, "energy_kwh": kwh, "energy_cpu_kwh": cpu, "energy_gpu_kwh": gpu,
        "energy_ram_kwh": ram, "emissions_kg": kwh * basis.g_per_kwh / 1000,
    }  # fmt: skip
    board = {"gpu_power_limit_w": LIMIT_W, "gpu_idle_w": IDLE_W}
    board |= {name: facts.pop(name) for name in list(facts) if name in board}
    codecarbon = {f"codecarbon.{name}": value for name, value in (totals | facts).items()}
    return Measurement(segments=segments, basis=basis, facts=board | codecarbon)


def phases(seconds: float = 100.0, **watts: float) -> list[Segment]:
    return [segment(name, seconds, w) for name, w in (DRAWN_W | watts).items()]


def without(measurement: Measurement, *names: str) -> Measurement:
    facts = {name: value for name, value in measurement.facts.items() if name not in names}
    return replace(measurement, facts=facts)


def with_methods(measurement: Measurement, methods: Mapping[str, str]) -> Measurement:
    return replace(measurement, basis=replace(measurement.basis, methods=methods))


GOOD = checked(*phases())
ON_CPU = without(
    checked(*phases(setup=0.0, train=0.0, eval=0.0), basis=replace(BASIS, methods=NO_GPU)),
    "gpu_power_limit_w", "gpu_idle_w",
)  # fmt: skip


@pytest.mark.parametrize("measurement", [GOOD, ON_CPU], ids=["gpu", "cpu"])
def test_a_good_measurement_passes_every_gate(measurement: Measurement) -> None:
    assert failures(measurement) == []


def test_a_gate_is_skipped_where_its_fact_is_absent() -> None:
    assert failures(without(GOOD, *FACTS)) == []
    for name in FACTS:
        assert failures(without(GOOD, name)) == []
    assert failures(without(checked(*phases(train=900.0)), "gpu_power_limit_w")) == []
    assert failures(without(checked(*phases(train=55.0)), "gpu_idle_w")) == []


class Careless(Basis):
    """Forgets the PUE."""

    def kg(self, energy_kwh: float) -> float:
        return energy_kwh * self.g_per_kwh / 1000


CARELESS = Careless(g_per_kwh=369.473, methods=METHODS, pue=1.2)
TRAIN = segment("train", 100.0, 250.0)
NO_GPU_ENERGY = segment("train", 100.0, 250.0, energy_gpu_kwh=0.0)
ONLY_GPU = segment("train", 100.0, 250.0, energy_cpu_kwh=0.0, energy_ram_kwh=0.0)
SILENT = Basis(g_per_kwh=475, methods=dict.fromkeys(METHODS, "none (no sensor)"))
TRIPPED = {
    "(a) in a phase": (
        checked(*phases(eval=331.0)),
        "the GPU drew 331.0 W in eval: more than 1.1 x its limit of 300 W"),
    "(a) in the run": (
        checked(segment("train", 5, 350)),
        "the GPU drew 350.0 W in the run: more than 1.1 x its limit of 300 W"),
    "(b)": (
        checked(*phases(), energy_gpu_kwh=0.0145),
        "CodeCarbon's GPU energy is 0.0145 kWh, the counter's 0.0141667 kWh: "
        "more than 0.00014 kWh apart"),
    "(b) CodeCarbon sees no GPU": (
        checked(*phases(), energy_gpu_kwh=0.0),
        "CodeCarbon's GPU energy is 0 kWh, the counter's 0.0141667 kWh: "
        "more than 0.00014 kWh apart"),
    "(c)": (
        checked(replace(TRAIN, gpu_sampled_kwh=0.005)),
        "the GPU's counter says 0.00694444 kWh, its power readings 0.005 kWh: "
        "more than 10% apart"),
    "(d)": (
        checked(*phases(train=55.0)),
        "the GPU was 95% busy in train at 55.0 W: less than 1.2 x its idle 50 W"),
    "(e)": (
        checked(TRAIN, energy_kwh=0.01),
        "CodeCarbon's energy is 0.01 kWh, the sum of its parts 0.00861111111111 kWh"),
    "(f) CodeCarbon's": (
        checked(TRAIN, emissions_kg=0.0038),
        "CodeCarbon's emissions are 0.0038 kg, not 0.00861111111111 kWh x 369.473 g/kWh"),
    "(f) ours": (
        checked(TRAIN, basis=CARELESS),
        "the emissions are 0.00318157305556 kg, "
        "not 0.00861111111111 kWh x PUE 1.2 x 369.473 g/kWh"),
    "(g)": (
        checked(TRAIN, runtime_h=0.025),
        "CodeCarbon ran for 90.0 s, we for 100.0 s"),
    "no GPU energy": (
        checked(NO_GPU_ENERGY),
        "no energy of gpu (measured (NVML counter))"),
    "no CPU energy": (
        checked(replace(TRAIN, energy_cpu_kwh=0.0)),
        "no energy of cpu (measured (RAPL))"),
    "no CPU and no RAM energy": (
        checked(ONLY_GPU),
        "no energy of cpu (measured (RAPL)), ram (modelled (DIMMs))"),
    "no energy": (
        Measurement(segments=[], basis=SILENT),
        "the run has no energy at all"),
    "less than nothing": (
        checked(replace(TRAIN, energy_cpu_kwh=-0.001)),
        "energy_cpu_kwh of train is -0.001 (and 1 more), which is no amount"),
}  # fmt: skip


@pytest.mark.parametrize(("measurement", "said"), TRIPPED.values(), ids=TRIPPED)
def test_each_gate_alone_says_its_sentence(measurement: Measurement, said: str) -> None:
    assert failures(measurement) == [said]


def train(seconds: float, gpu_w: float, **changed: float) -> Measurement:
    return checked(segment("train", seconds, gpu_w, **changed))


def an_hour(energy_gpu_kwh: float) -> Measurement:
    return checked(segment("train", 3600, 250.0), energy_gpu_kwh=energy_gpu_kwh)


def a_second(codecarbon_steps: float) -> Measurement:
    step_kwh = 0.1 * LIMIT_W / 3.6e6
    return checked(segment("train", 1, 36.0), energy_gpu_kwh=1e-5 + codecarbon_steps * step_kwh)


def beside_train(seconds: float, gpu_w: float) -> Measurement:
    return checked(TRAIN, segment("eval", seconds, gpu_w))


KWH = TRAIN.energy_kwh
KG = KWH * 0.369473
EDGES = {
    "(a) 1.1 x the limit for an hour": (train(3600, 330.0), train(3600, 330.1)),
    "(a) one step of the counter": (train(1, 330 + 29.9), train(1, 330 + 30.1)),
    "(a) in a phase from 10 s on": (beside_train(9.9, 400), beside_train(10.1, 400)),
    "(b) 1 % above": (an_hour(energy_gpu_kwh=0.2524), an_hour(energy_gpu_kwh=0.2526)),
    "(b) 1 % below": (an_hour(energy_gpu_kwh=0.2476), an_hour(energy_gpu_kwh=0.2474)),
    "(b) one step of the counter": (a_second(codecarbon_steps=0.99), a_second(1.01)),
    "(c) 10 % above": (
        train(3600, 250, gpu_sampled_kwh=0.2749), train(3600, 250, gpu_sampled_kwh=0.2751)),
    "(c) 10 % below": (
        train(3600, 250, gpu_sampled_kwh=0.2251), train(3600, 250, gpu_sampled_kwh=0.2249)),
    "(c) from a minute on": (
        train(60.0, 250, gpu_sampled_kwh=0.001), train(60.1, 250, gpu_sampled_kwh=0.001)),
    "(d) 1.2 x idle": (train(100, 60.1), train(100, 59.9)),
    "(d) 80 % busy": (train(100, 55, busy=0.799), train(100, 55, busy=0.801)),
    "(d) from 10 s on": (train(9.9, 55), train(10.1, 55)),
    "(e) above": (
        checked(TRAIN, energy_kwh=KWH * (1 + 0.9e-9)),
        checked(TRAIN, energy_kwh=KWH * (1 + 1.1e-9))),
    "(e) below": (
        checked(TRAIN, energy_kwh=KWH * (1 - 0.9e-9)),
        checked(TRAIN, energy_kwh=KWH * (1 - 1.1e-9))),
    "(f) above": (
        checked(TRAIN, emissions_kg=KG * (1 + 0.9e-9)),
        checked(TRAIN, emissions_kg=KG * (1 + 1.1e-9))),
    "(f) below": (
        checked(TRAIN, emissions_kg=KG * (1 - 0.9e-9)),
        checked(TRAIN, emissions_kg=KG * (1 - 1.1e-9))),
    "(g) 1 % and a second longer": (
        checked(TRAIN, runtime_h=101.99 / 3600), checked(TRAIN, runtime_h=102.01 / 3600)),
    "(g) 1 % and a second shorter": (
        checked(TRAIN, runtime_h=98.01 / 3600), checked(TRAIN, runtime_h=97.99 / 3600)),
}  # fmt: skip


@pytest.mark.parametrize(("inside", "outside"), EDGES.values(), ids=EDGES)
def test_each_threshold_is_where_it_says(inside: Measurement, outside: Measurement) -> None:
    assert failures(inside) == []
    assert len(failures(outside)) == 1


@dataclass(frozen=True, kw_only=True)
class Scaled(Basis):
    factor: float

    def kg(self, energy_kwh: float) -> float:
        return super().kg(energy_kwh) * self.factor


@pytest.mark.parametrize(
    ("off", "faults"), [(0.9e-9, 0), (1.1e-9, 1), (-0.9e-9, 0), (-1.1e-9, 1), (1e-3, 1)]
)
def test_our_emissions_are_their_product_to_a_billionth(off: float, faults: int) -> None:
    basis = Scaled(g_per_kwh=369.473, methods=METHODS, pue=1.2, factor=1 + off)
    assert len(failures(checked(TRAIN, basis=basis))) == faults


@pytest.mark.parametrize("unread", ["gpu_counted_kwh", "gpu_sampled_kwh"])
def test_only_two_readings_can_contradict_each_other(unread: str) -> None:
    one = segment("train", 100, 250.0, busy=0.0, **{unread: 0.0})
    assert failures(without(checked(one), "codecarbon.energy_gpu_kwh")) == []


def test_a_gpu_that_waits_may_draw_little() -> None:
    assert failures(checked(segment("train", 100, 51.0, busy=0.1))) == []
    assert failures(checked(TRAIN, segment("eval", 100, 51.0, busy=0.99))) == []


def test_a_phase_in_many_segments_is_judged_as_one() -> None:
    seconds = [segment("eval", 1, 340.0) for _ in range(20)]
    assert failures(checked(TRAIN, *seconds)) == [
        "the GPU drew 340.0 W in eval: more than 1.1 x its limit of 300 W"
    ]
    bursts = [segment("train", 10, w) for w in (420.0, 80.0) * 10]
    assert failures(checked(*bursts)) == []


# Counter of the GPU over the run, from model cards (research, section 6b); limits of the boards.
@pytest.mark.parametrize(
    ("kwh", "seconds", "limit_w"),
    [(0.03209, 275.2, 450), (0.1660, 2146.9, 450), (4.576, 49516, 400)],
)
def test_published_runs_stay_within_their_boards_limit(
    kwh: float, seconds: float, limit_w: float
) -> None:
    run = segment("train", seconds, kwh / seconds * 3.6e6)
    assert failures(checked(run, gpu_power_limit_w=limit_w)) == []


def test_paused_time_counts_for_both_clocks() -> None:
    paused = segment("paused", 500, 50.0, busy=0.0)
    assert failures(checked(TRAIN, paused)) == []
    ours_only = checked(TRAIN, paused, runtime_h=100 / 3600)
    assert failures(ours_only) == ["CodeCarbon ran for 100.0 s, we for 600.0 s"]


def test_a_shared_gpu_is_checked_whole() -> None:
    shared = replace(TRAIN, energy_gpu_kwh=TRAIN.gpu_counted_kwh / 3)
    assert failures(checked(shared)) == []


def test_energy_of_zero_is_a_fault_only_where_something_should_have_been_seen() -> None:
    assert failures(with_methods(checked(NO_GPU_ENERGY), {**METHODS, "gpu": "none"})) == []
    assert failures(with_methods(checked(NO_GPU_ENERGY), {**METHODS, "gpu": "modelled"})) == []
    silent = {**METHODS, "cpu": "none (no sensor)", "ram": "none"}
    assert failures(with_methods(checked(ONLY_GPU), silent)) == []


def test_an_empty_measurement_fails_without_dividing_by_zero() -> None:
    (said,) = failures(checked())
    assert said.startswith("no energy of cpu (measured (RAPL)), ram (modelled (DIMMs)), gpu")


def test_energy_in_no_time_fails() -> None:
    instant = replace(TRAIN, runtime_h=0.0, gpu_busy_h=0.0)
    assert failures(checked(instant)) == [
        "the GPU drew inf W in the run: more than 1.1 x its limit of 300 W"
    ]


NO_AMOUNTS = (math.nan, math.inf, -math.inf, -1e-9)


@pytest.mark.parametrize("value", NO_AMOUNTS)
@pytest.mark.parametrize("name", ["started_s", *AMOUNTS])
def test_what_is_no_amount_never_slips_through_a_segment(name: str, value: float) -> None:
    setup, *rest = phases()
    wrong = replace(GOOD, segments=[Segment(**{**vars(setup), name: value}), *rest])
    assert failures(wrong) == [f"{name} of setup is {value:g}, which is no amount"]


@pytest.mark.parametrize("value", NO_AMOUNTS)
@pytest.mark.parametrize("name", FACTS)
def test_what_is_no_amount_never_slips_through_a_fact(name: str, value: float) -> None:
    wrong = replace(GOOD, facts={**GOOD.facts, name: value})
    assert failures(wrong) == [f"{name} is {value:g}, which is no amount"]


@pytest.mark.parametrize("value", NO_AMOUNTS)
@pytest.mark.parametrize(("name", "said"), [("g_per_kwh", "the intensity"), ("pue", "the PUE")])
def test_what_is_no_amount_never_slips_through_the_basis(
    name: str, said: str, value: float
) -> None:
    wrong = replace(GOOD, basis=replace(BASIS, **{name: value}))  # type: ignore[arg-type]
    assert failures(wrong) == [f"{said} is {value:g}, which is no amount"]


def test_facts_that_no_gate_reads_are_left_alone() -> None:
    assert failures(replace(GOOD, facts={**GOOD.facts, "saved_kwh": math.nan})) == []


def test_gates_change_nothing() -> None:
    before = repr(GOOD)
    failures(GOOD)
    assert repr(GOOD) == before


stretches = st.lists(
    st.tuples(st.sampled_from(PHASES), st.floats(0.001, 1e6), st.floats(0, 1)),
    min_size=1,
    max_size=20,
)


@given(stretches, st.floats(1, 1e4), st.floats(1, 10), st.floats(0.01, 0.83), st.floats(1, 2))
def test_constant_power_at_or_below_the_limit_never_fails(
    stretches: list[tuple[str, float, float]], watts: float, above: float, idle: float, pue: float
) -> None:
    segments = [segment(phase, seconds, watts, busy) for phase, seconds, busy in stretches]
    board = {"gpu_power_limit_w": watts * above, "gpu_idle_w": watts * idle}
    assert failures(checked(*segments, basis=replace(BASIS, pue=pue), **board)) == []


@given(stretches, st.floats(1, 1e4), st.floats(1.2, 10))
def test_constant_power_above_the_limit_fails_from_a_second_on(
    stretches: list[tuple[str, float, float]], limit: float, above: float
) -> None:
    segments = [
        segment(phase, 1 + seconds, limit * above, busy) for phase, seconds, busy in stretches
    ]
    (said,) = failures(checked(*segments, gpu_power_limit_w=limit, gpu_idle_w=0.0))
    assert "in the run" in said
