"""Grams per kilowatt-hour: from a code, a number or the world, never from a silent fallback."""

import pycountry
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from green_tune.errors import ConfigError
from green_tune.intensity import Intensity, resolve


def answer(country: str) -> Intensity | str:
    try:
        return resolve(country)
    except ConfigError as error:
        return str(error)


def refusal(country: str) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(country)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("country", ["FRA", "fra", "FR", "fr"])
def test_a_code_gives_its_countrys_average(country: str) -> None:
    found = resolve(country)
    assert (found.zone, found.assumed) == ("France", False)
    assert found.source.startswith("CodeCarbon's table, 20")
    assert 20 < found.g_per_kwh < 120
    assert found.note == f"France at {found.g_per_kwh:g} g/kWh"


def test_coal_is_far_above_water() -> None:
    assert resolve("POL").g_per_kwh > 10 * resolve("NOR").g_per_kwh


@pytest.mark.parametrize("country", ["world", "World"])
def test_the_world_is_said_to_be_assumed(country: str) -> None:
    assert resolve(country).note == "assumed: world average at 475 g/kWh"


def test_a_number_is_said_to_be_given() -> None:
    assert resolve("56.5") == Intensity(
        g_per_kwh=56.5, zone="given", source="given by user", year="", assumed=False
    )


@settings(deadline=None)
@given(st.floats(0, 2000, exclude_min=True))
def test_any_number_up_to_the_dirtiest_grid_is_taken_as_it_is(grams: float) -> None:
    assert resolve(str(grams)).g_per_kwh == grams


@settings(deadline=None)
@given(st.floats(max_value=0) | st.floats(2000, exclude_min=True) | st.just(float("nan")))
def test_any_other_number_is_refused_with_the_bounds(grams: float) -> None:
    line = refusal(str(grams))
    assert line.startswith(f"country={grams:g} is no intensity in g CO2e per kWh")
    assert line.endswith("above 0, at most 2000")


def test_every_country_emits_something_or_is_refused() -> None:
    for country in pycountry.countries:
        two, three = answer(country.alpha_2), answer(country.alpha_3)
        if isinstance(three, str):
            assert three.startswith(f"country={country.alpha_3} ")
            assert three.endswith("CodeCarbon's table; give g/kWh instead")
            assert isinstance(two, str)
        else:
            assert two == three
            assert 0 < three.g_per_kwh <= 2000, country.name


def test_a_country_that_the_table_lacks_is_refused() -> None:
    line = refusal("ATA")
    assert line.startswith("country=ATA ")
    assert line.endswith("CodeCarbon's table; give g/kWh instead")


@pytest.mark.parametrize(
    ("country", "meant"), [("France", "FRA"), ("germany", "DEU"), ("FRN", "FRA"), ("UK", "GBR")]
)
def test_a_slip_is_answered_with_the_code_that_was_meant(country: str, meant: str) -> None:
    line = refusal(country)
    assert line.startswith(f"country={country.upper()} is neither an ISO code (FRA, FR), nor a ")
    hint = line.split("did you mean ")[1]
    assert hint.count(meant) == 1
    assert "UKR" not in hint


@pytest.mark.parametrize("country", ["XX", "ZZZ", "56,5", "12 g", "1e", "Atlantis-on-Sea"])
def test_nonsense_is_refused_with_the_three_ways_to_say_it(country: str) -> None:
    line = refusal(country)
    assert line.startswith(f"country={country.upper()} is neither an ISO code")
    assert "nor a number of g/kWh, nor world" in line
