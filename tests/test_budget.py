"""What a budget still allows, and what a trial will cost."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from green_tune.budget import NOISE, SLOPES, ZERO, Amount, Budget, Price, Sample


def amount(kwh: float) -> Amount:
    return Amount(emissions_kg=0.4 * kwh, energy_kwh=kwh, runtime_h=5 * kwh)


def sample(kwh: float, progress: float = 1.0, **values: float) -> Sample:
    return Sample(values=values, amount=amount(kwh), progress=progress)


def expected(samples: list[Sample], **values: float) -> float:
    found = Price.of(samples).expected(values)
    assert found is not None
    return found.energy_kwh


def upper(samples: list[Sample], **values: float) -> float:
    found = Price.of(samples).upper(values)
    assert found is not None
    return found.energy_kwh


def test_amounts_add_up_figure_by_figure() -> None:
    one = Amount(emissions_kg=1.0, energy_kwh=2.0, runtime_h=3.0)
    assert one + one.times(2) == Amount(emissions_kg=3.0, energy_kwh=6.0, runtime_h=9.0)
    assert sum([one, one], ZERO) == one.times(2)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("figure", ["emissions_kg", "energy_kwh", "runtime_h"])
def test_an_amount_that_no_budget_would_notice_is_refused(figure: str, wrong: float) -> None:
    with pytest.raises(ValueError, match="finite and at least 0"):
        Amount(**{figure: wrong})


@pytest.mark.parametrize("wrong", [math.nan, -1.0])
def test_a_budget_that_nothing_could_break_or_keep_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        Budget(energy_kwh=wrong)


def test_without_limits_nothing_is_over() -> None:
    assert Budget().over(Amount(emissions_kg=1e9, energy_kwh=1e9, runtime_h=1e9)) == ""


@pytest.mark.parametrize(
    ("budget", "spent", "more", "line"),
    [
        (
            Budget(emissions_kg=0.05),
            Amount(emissions_kg=0.043),
            Amount(emissions_kg=0.012),
            "emissions_budget_kg=0.05: 0.043 kg are spent, 0.007 kg are left "
            "and the next trial is expected to take 0.012 kg",
        ),
        (
            Budget(energy_kwh=2),
            Amount(energy_kwh=2.5),
            ZERO,
            "energy_budget_kwh=2: 2.5 kWh are spent, nothing is left",
        ),
        (
            Budget(runtime_h=1.5),
            Amount(runtime_h=1.5),
            Amount(runtime_h=1.0),
            "timeout_h=1.5: 1.5 h are spent, nothing is left",
        ),
        (
            Budget(emissions_kg=0),
            ZERO,
            ZERO,
            "emissions_budget_kg=0: 0 kg are spent, nothing is left",
        ),
    ],
)
def test_one_line_says_which_budget_would_be_broken(
    budget: Budget, spent: Amount, more: Amount, line: str
) -> None:
    assert budget.over(spent, more) == line


def test_every_budget_that_would_be_broken_is_in_the_line() -> None:
    line = Budget(emissions_kg=1, energy_kwh=1, runtime_h=9).over(amount(3), amount(0.1))
    assert [part.split("=")[0] for part in line.split("; ")] == [
        "emissions_budget_kg",
        "energy_budget_kwh",
        "timeout_h",
    ]


def test_what_fits_exactly_may_start() -> None:
    budget = Budget(energy_kwh=2.0)
    assert budget.over(Amount(energy_kwh=1.5), Amount(energy_kwh=0.5)) == ""
    assert budget.over(Amount(energy_kwh=1.5), Amount(energy_kwh=0.501))


FIGURES = st.floats(0, 100)
AMOUNTS = st.builds(Amount, emissions_kg=FIGURES, energy_kwh=FIGURES, runtime_h=FIGURES)
BUDGETS = st.builds(Budget, emissions_kg=FIGURES, energy_kwh=FIGURES, runtime_h=FIGURES)


@given(BUDGETS, AMOUNTS, AMOUNTS, AMOUNTS)
def test_who_spends_more_is_never_allowed_more(
    budget: Budget, spent: Amount, more: Amount, next_one: Amount
) -> None:
    if budget.over(spent, next_one):
        assert budget.over(spent + more, next_one)
        assert budget.over(spent, next_one + more)


def test_there_is_no_price_without_a_trial() -> None:
    nothing = [sample(0.0, epochs=1), sample(1.0, progress=0.0, epochs=1)]
    for price in (Price(), Price.of([]), Price.of(nothing)):
        assert price.expected({"epochs": 1}) is None
        assert price.upper({"epochs": 1}) is None


def test_one_trial_is_enough_for_a_price_in_proportion_to_epochs() -> None:
    price = Price.of([sample(0.3, epochs=1, batch_size=8, learning_rate=1e-4)])
    found = price.expected({"epochs": 3, "batch_size": 2, "learning_rate": 1e-3})
    assert found is not None
    assert found.energy_kwh == pytest.approx(0.9)
    assert found.emissions_kg == pytest.approx(0.36)
    assert found.runtime_h == pytest.approx(4.5)


def test_a_partly_done_trial_counts_as_what_the_whole_would_have_cost() -> None:
    assert expected([sample(0.1, progress=0.25, epochs=2)], epochs=2) == pytest.approx(0.4)


def test_a_trial_that_went_further_counts_for_more() -> None:
    samples = [sample(1.0, epochs=1), sample(0.2, progress=0.1, epochs=1)]
    assert 1.0 < expected(samples, epochs=1) < math.sqrt(2)


def test_small_batches_are_seen_to_cost_more() -> None:
    samples = [
        sample(epochs * 2.0 * batch**-0.4, epochs=epochs, batch_size=batch)
        for epochs, batch in ((1, 2), (2, 8), (1, 32), (3, 4), (2, 16))
    ]
    small, large = (expected(samples, epochs=2, batch_size=batch) for batch in (2, 32))
    assert small == pytest.approx(4.0 * 2**-0.4, rel=0.1)
    assert large == pytest.approx(4.0 * 32**-0.4, rel=0.1)


def test_few_trials_leave_a_price_near_proportion_to_epochs() -> None:
    samples = [sample(1.0, epochs=2), sample(1.1, epochs=3)]  # half as steep as believed
    ratio = expected(samples, epochs=4) / expected(samples, epochs=1)
    assert 3.0 < ratio < 4.0
    many = [*samples, *(sample(1.0 * e**0.2, epochs=e) for e in (1, 1, 2, 2, 4, 4, 8, 8, 16, 16))]
    assert expected(many, epochs=4) / expected(many, epochs=1) < 2.0


def test_nothing_but_the_known_sizes_has_a_price() -> None:
    samples = [sample(1.0, epochs=1, warmup_steps=0), sample(2.0, epochs=1, warmup_steps=20)]
    assert expected(samples, epochs=1, warmup_steps=0) == expected(samples, epochs=1)


def test_a_size_that_is_not_told_is_taken_as_the_mean() -> None:
    samples = [sample(4.0, batch_size=2), sample(1.0, batch_size=8)]
    assert expected(samples) == pytest.approx(expected(samples, batch_size=4))
    assert expected([*samples, sample(2.0)], batch_size=2) == pytest.approx(2.0)  # not all have it


def test_a_size_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="epochs=0"):
        Price.of([sample(1.0, epochs=0)])
    with pytest.raises(ValueError, match="batch_size=-1"):
        Price.of([sample(1.0, batch_size=1)]).expected({"batch_size": -1})


def test_the_upper_bound_widens_with_the_spread_and_with_the_distance() -> None:
    calm = [sample(1.0, epochs=1, batch_size=8)] * 20
    noisy = [sample(k, epochs=1, batch_size=8) for k in (0.5, 2.0)] * 10
    here = {"epochs": 1.0, "batch_size": 8.0}
    assert upper(calm, **here) == pytest.approx(1.1**1.2816, rel=0.01)
    assert upper(noisy, **here) > 2.0
    assert upper(calm, epochs=1, batch_size=64) > 1.5


@pytest.mark.parametrize("seen", [1, 4, 20])
def test_nine_of_ten_trials_stay_below_the_upper_bound(seen: int) -> None:
    """On studies whose device is drawn from what is believed, by a margin for the draw."""
    random = np.random.default_rng(seen)
    below = []
    for _ in range(300):
        slopes = {name: random.normal(*prior) for name, prior in SLOPES.items()}
        trials = [_drawn(random, slopes) for _ in range(seen + 1)]
        below.append(trials[-1].amount.energy_kwh <= upper(trials[:-1], **trials[-1].values))
    assert 0.85 < np.mean(below) < 0.95


def _drawn(random: np.random.Generator, slopes: dict[str, float]) -> Sample:
    values = {name: 2.0 ** random.integers(0, 4) for name in slopes}
    doublings = sum(slope * math.log2(values[name]) for name, slope in slopes.items())
    return sample(2.0 ** (doublings + random.normal(0, NOISE)), **values)


SIZES = st.fixed_dictionaries(
    {"epochs": st.integers(1, 10), "batch_size": st.sampled_from([1, 2, 8, 64])},
    optional={"lora_rank": st.integers(1, 256), "learning_rate": st.floats(1e-6, 1e-2)},
)
SAMPLES = st.lists(
    st.builds(
        Sample,
        values=SIZES,
        amount=st.floats(1e-6, 1e3).map(amount),
        progress=st.floats(0.01, 1.0),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(SAMPLES, SIZES)
def test_a_price_is_positive_and_below_its_bound(
    samples: list[Sample], values: dict[str, float]
) -> None:
    assert 0 < expected(samples, **values) < upper(samples, **values) < math.inf


@settings(deadline=None)
@given(SAMPLES, SIZES, st.floats(1e-3, 1e3))
def test_where_all_cost_a_multiple_the_price_is_that_multiple(
    samples: list[Sample], values: dict[str, float], factor: float
) -> None:
    dearer = [
        Sample(values=s.values, amount=s.amount.times(factor), progress=s.progress) for s in samples
    ]
    assert expected(dearer, **values) == pytest.approx(factor * expected(samples, **values))
    assert upper(dearer, **values) == pytest.approx(factor * upper(samples, **values))
