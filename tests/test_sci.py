"""The Software Carbon Intensity: its formula, its terms, and what is assumed of hardware."""

import random
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import Effects, run

from green_tune import sci
from green_tune.results import RunRecord
from green_tune.sci import ASSUMED, Sci

AMOUNTS = st.floats(0, 1e6)
SITE = sci.Site(g_per_kwh=400.0, pue=1.5, gpu_type="a100-40", device="A100, 40 GiB")


def record(**tags: str) -> RunRecord:
    one = run(random.Random(1), Effects())
    return replace(one, tags={**one.tags, **tags})


def test_an_adapter_has_the_intensity_of_the_formula_worked_out_by_hand() -> None:
    found = sci.per_thousand(2.0, 3.0, 500, SITE)
    assert found.operational_g == pytest.approx(2.0 * 1.5 * 400)
    year_h = 24 * 365.25
    assert found.embodied_g == pytest.approx((8 * 150 + 2500) * 1000 * 3 / (4 * year_h) / 8)
    assert found.g == found.operational_g + found.embodied_g
    assert found.per_unit_g == pytest.approx(2 * found.g)


@given(AMOUNTS, AMOUNTS, st.integers(1, 10**9))
def test_a_thousand_predictions_cost_what_all_of_them_did_by_their_number(
    energy_kwh: float, runtime_h: float, count: int
) -> None:
    found = sci.per_thousand(energy_kwh, runtime_h, count, SITE)
    assert found.per_unit_g * count == pytest.approx(1000 * found.g)


def test_the_operational_part_of_a_run_is_its_emissions_in_grams() -> None:
    found = sci.of(record())
    assert found is not None
    assert found.operational_g == pytest.approx(1000 * record().metrics["emissions_kg"])
    assert (found.units, found.unit) == (1.0, "adapter")
    assert found.runtime_h == record().metrics["runtime_h"]


def test_an_adapter_on_the_way_has_its_part_of_both() -> None:
    whole, half = sci.of(record()), sci.of(record(), part=0.5)
    assert whole is not None
    assert half is not None
    assert half.operational_g == pytest.approx(whole.operational_g / 2)
    assert half.embodied_g == pytest.approx(whole.embodied_g / 2)


@pytest.mark.parametrize(
    ("device", "share"),
    [
        ("Intel(R) Xeon(R) Processor, 2 threads, 24 GiB", 2 / 128),
        ("AMD EPYC, 64 threads", 0.5),
        ("AMD EPYC, 384 threads, 1000 GiB", 1.0),
        ("a CPU", 1.0),
        ("", 1.0),
    ],
)
def test_a_run_on_a_cpu_has_reserved_its_threads_of_a_server(device: str, share: float) -> None:
    found = sci.of(record(gpu_type="cpu", device=device))
    assert found is not None
    assert (found.embodied_kg, found.share) == (ASSUMED["server"].value, share)


@pytest.mark.parametrize("kind", ["t4", "l4", "a100-80", "unknown"])
def test_a_run_on_gpus_has_reserved_them_and_their_part_of_a_server(kind: str) -> None:
    one, two = (sci.of(record(gpu_type=kind, device="GPU, 16 GiB"), gpus=n) for n in (1, 2))
    assert one is not None
    assert two is not None
    assert one.embodied_kg * one.share == pytest.approx(150 + 2500 / 8)
    assert two.embodied_g == pytest.approx(2 * one.embodied_g)


def test_a_cpu_is_never_taken_for_a_gpu_and_a_gpu_whose_kind_is_unknown_is_one() -> None:
    tags = {"intensity_g_per_kwh": "56", "device": "something"}
    nameless, cpu = sci.site(tags), sci.site(tags | {"gpu_type": "cpu"})
    assert nameless is not None
    assert cpu is not None
    assert sci.per_thousand(1, 1, 1, nameless).hardware.startswith("1 of 8 GPUs")
    assert "threads" in sci.per_thousand(1, 1, 1, cpu).hardware


@pytest.mark.parametrize("missing", ["energy_kwh", "runtime_h"])
def test_a_run_that_does_not_say_what_it_took_has_none(missing: str) -> None:
    one = record()
    metrics = {name: value for name, value in one.metrics.items() if name != missing}
    assert sci.of(replace(one, metrics=metrics)) is None


@pytest.mark.parametrize("intensity", [{}, {"intensity_g_per_kwh": "dirty"}])
def test_a_run_without_a_carbon_intensity_has_none(intensity: dict[str, str]) -> None:
    assert sci.of(replace(record(), tags={"gpu_type": "t4", **intensity})) is None


@pytest.mark.parametrize("count", [0, -3])
def test_no_predictions_have_no_intensity(count: int) -> None:
    with pytest.raises(ValueError, match="SCI"):
        sci.per_thousand(1.0, 1.0, count, SITE)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", [f.name for f in fields(Sci) if f.type == "float" or f.type is float]
)
def test_terms_that_are_no_amounts_are_refused(name: str, wrong: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        replace(sci.per_thousand(1.0, 1.0, 1000, SITE), **{name: wrong})  # type: ignore[arg-type]


def test_every_assumption_says_where_it_is_from_and_only_those_are_called_assumed() -> None:
    assert all(one.source and one.unit and one.value > 0 for one in ASSUMED.values())
    terms = {sign: how for sign, _, _, how in sci.per_thousand(1, 1, 1, SITE).terms("measured")}
    assert {sign for sign, how in terms.items() if how == "assumed"} == {
        "TE",
        "EL",
        "RR / ToR",
        "M",
    }
    assert (terms["E"], terms["TiR"]) == ("measured", "measured")
