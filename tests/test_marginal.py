"""What a loss costs: known courses have known prices."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from green_tune import marginal
from green_tune.results import EVALUATIONS, RunRecord

Row = tuple[int, float, float, float]
# From 3 nats to 1; the second half costs twice as much as the first.
COURSE: list[Row] = [(0, 0.0, 3.0, 0.001), (20, 0.5, 2.0, 0.003), (40, 1.0, 1.0, 0.007)]


def run(course: Sequence[Row] = COURSE, number: int = 0, **metrics: float) -> RunRecord:
    return RunRecord(
        run_id=f"{number:032x}",
        name="",
        kind="train",
        status="FINISHED",
        started=datetime(2026, 11, 22, tzinfo=UTC),
        metrics=metrics,
        tags={EVALUATIONS: json.dumps(course)} if course else {},
    )


def falling(*losses: float) -> list[Row]:
    """A validation a gram."""
    last = len(losses) - 1
    return [(n, n / last, loss, n / 1000) for n, loss in enumerate(losses)]


def close(found: Sequence[tuple[float, ...]], expected: Sequence[tuple[float, ...]]) -> bool:
    return len(found) == len(expected) and all(
        one == pytest.approx(other) for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize(
    ("loss", "grams"),
    [(3.5, 1.0), (3.0, 1.0), (2.5, 2.0), (2.0, 3.0), (1.25, 6.0), (1.0, 7.0), (0.99, None)],
)
def test_grams_to_a_loss_go_straight_between_validations(loss: float, grams: float | None) -> None:
    assert marginal.grams_to(run(), loss) == (None if grams is None else pytest.approx(grams))


def test_a_loss_counts_when_it_is_first_reached() -> None:
    assert marginal.grams_to(run(falling(3.0, 1.0, 2.0, 1.0)), 1.5) == pytest.approx(0.75)
    assert marginal.grams_to(run(falling(3.0, 3.5, 2.5)), 3.0) == 0.0
    assert marginal.grams_to(run(falling(3.0, 3.5, 2.5)), 2.75) == pytest.approx(1.75)


def test_without_a_course_nobody_knows_what_a_loss_cost() -> None:
    bare = run([], val_loss=1.0, emissions_kg=0.1)
    assert marginal.grams_to(bare, 2.0) is None
    assert marginal.per_hundredth(bare) == []
    assert marginal.target([bare]) is None
    assert marginal.at_tokens([bare]) == {}


def test_a_faster_learning_rate_shows_in_grams_to_a_loss_though_not_in_grams() -> None:
    slow, fast = run(falling(3.0, 2.5, 2.0)), run(falling(3.0, 1.5, 1.2))
    loss = marginal.target([slow, fast])
    assert loss == 2.0
    assert (marginal.grams_to(slow, loss), marginal.grams_to(fast, loss)) == pytest.approx(
        (2.0, 2 / 3)
    )


def test_three_quarters_of_the_runs_reach_the_target_and_the_lowest_such() -> None:
    runs = [run(falling(3.0, best, best + 0.5)) for best in (1.0, 1.1, 1.2, 1.3, 1.4, 2.9, 2.95)]
    loss = marginal.target(runs)
    assert loss == 2.9
    assert marginal.target(runs[:4]) == 1.2
    assert marginal.target(runs[:1]) == 1.0


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(1, 40))
def test_no_lower_loss_is_reached_by_as_many(seed: int, number: int) -> None:
    runs = synthetic.searched(seed, synthetic.Effects(bend={"batch_size": (0.05, 3)}), number)
    loss = marginal.target(runs)
    assert loss is not None
    needed = marginal.REACHED * number
    assert sum(marginal.grams_to(r, loss) is not None for r in runs) >= needed
    assert sum(marginal.grams_to(r, loss - 1e-9) is not None for r in runs) < max(needed, 1)


def test_runs_that_do_not_learn_set_no_target() -> None:
    diverged = [run(falling(3.0, 3.1, 3.2)) for _ in range(2)]
    assert marginal.target([run(), *diverged]) is None
    assert marginal.target([*(run() for _ in range(6)), *diverged]) == 1.0


def test_a_hundredth_costs_what_the_slope_says() -> None:
    assert close(marginal.per_hundredth(run()), [(3.0, 0.02), (2.0, 0.04)])


def test_a_validation_above_the_envelope_has_no_price_of_its_own() -> None:
    prices = marginal.per_hundredth(run(falling(3.0, 2.9, 1.0, 1.0, 1.5)))
    assert close(prices, [(3.0, 0.01)])
    assert marginal.per_hundredth(run(falling(3.0, 3.0, 3.5))) == []


@settings(deadline=None)
@given(st.lists(st.floats(0.5, 4.0), min_size=2, max_size=20))
def test_prices_are_positive_and_rise_while_the_loss_falls(losses: list[float]) -> None:
    prices = marginal.per_hundredth(run(falling(*losses)))
    assert all(grams > 0 for _, grams in prices)
    assert all(a.grams <= b.grams * (1 + 1e-9) and a.loss > b.loss for a, b in pairwise(prices))
    assert bool(prices) == (min(losses) < losses[0])


def test_noise_around_a_known_curve_leaves_its_prices() -> None:
    dice = random.Random(0)
    course = [(n, n / 40, 1 + 2 * 0.9**n + dice.gauss(0, 0.002), n / 1000) for n in range(41)]
    for loss, grams in marginal.per_hundredth(run(course))[:10]:
        slope = -(loss - 1) * 0.9**0.5 * 2 * 0.0527  # of 2 x 0.9^n, in the middle of a step
        assert grams == pytest.approx(-0.01 / slope, rel=0.2)


def test_the_front_of_a_block_is_priced_over_all_of_its_runs() -> None:
    short = run(falling(3.0, 2.0), 1, val_loss=2.0, emissions_kg=0.001, steps=1.0)
    long = run(falling(3.0, 2.5, 1.5), 2, val_loss=1.5, emissions_kg=0.003, steps=2.0)
    best = run([], 3, val_loss=1.4, emissions_kg=0.013)
    assert close(marginal.front_per_hundredth([short, long, best]), [(2.0, 0.04), (1.5, 1.0)])
    bend = marginal.knee([short, long, best])
    assert bend is not None
    assert bend.record is long
    assert marginal.knee([short]) is None
    assert marginal.front_per_hundredth([]) == []


def test_at_equal_tokens_a_longer_run_is_taken_on_its_way() -> None:
    once = run(falling(3.0, 2.0, 1.6, 1.4, 1.3), 1, train_tokens=1000.0)
    thrice = run(falling(3.0, 1.8, 1.5, 1.2, 1.1), 2, train_tokens=3000.0)
    found = marginal.at_tokens([once, thrice])
    assert found[once.run_id] == (1000.0, 1.3, 4.0)
    # A third of the way: a third of the way from the validation at 1/4 to that at 1/2.
    assert found[thrice.run_id] == pytest.approx((1000.0, 1.7, 4 / 3))


def test_one_run_that_ended_at_once_does_not_shorten_all_others() -> None:
    full = [run(falling(3.0, 2.0, 1.0), number, train_tokens=1000.0) for number in range(9)]
    course = [(0, 0.0, 3.0, 0.0), (1, 0.05, 2.9, 0.0001)]
    ended = run(course, 99, train_tokens=50.0)
    assert marginal.at_tokens([*full, ended]) == {r.run_id: (1000.0, 1.0, 2.0) for r in full}
    # Of nine, one is more than a tenth; in their first twentieth nobody looked at the others.
    assert marginal.at_tokens([*full[:8], ended]) == {ended.run_id: (50.0, 2.9, 0.1)}


def test_a_run_that_was_ended_counts_its_tokens_up_to_there() -> None:
    course = [(0, 0.0, 3.0, 0.0), (10, 0.25, 2.0, 0.001), (20, 0.5, 1.5, 0.002)]
    ended = run(course, 1, train_tokens=800.0)
    small = run(falling(3.0, 2.0), 2, train_tokens=600.0)
    found = marginal.at_tokens([ended, small])[ended.run_id]
    assert found == pytest.approx((600.0, 1.75, 1.5))


def test_the_published_floor_is_met_by_the_submission_that_set_it() -> None:
    floor = marginal.FLOOR_MJ_PER_TOKEN_PER_BILLION
    assert floor["8 x H100"] == pytest.approx(6.9, abs=0.05)
    assert floor["8 x B200"] == pytest.approx(3.6, abs=0.05)
    theirs = run(
        energy_kwh=12.09 / 3.6, train_tokens=float(marginal.MLPERF_TOKENS), base_parameters=70e9
    )
    assert marginal.mj_per_token_per_billion(theirs) == pytest.approx(floor["8 x H100"])


def test_intensities_per_token_are_of_the_whole_run() -> None:
    one = run(emissions_kg=0.5, energy_kwh=1.0, train_tokens=2e6, base_parameters=2e9)
    assert marginal.grams_per_million_tokens(one) == pytest.approx(250.0)
    assert marginal.mj_per_token_per_billion(one) == pytest.approx(3.6e9 / 2e6 / 2)


@pytest.mark.parametrize(
    "missing", ["emissions_kg", "energy_kwh", "train_tokens", "base_parameters"]
)
def test_a_part_that_is_missing_leaves_no_figure(missing: str) -> None:
    whole = run(emissions_kg=0.5, energy_kwh=1.0, train_tokens=2e6, base_parameters=2e9)
    left = replace(whole, metrics={k: v for k, v in whole.metrics.items() if k != missing})
    none = [
        marginal.grams_per_million_tokens(left) is None,
        marginal.mj_per_token_per_billion(left) is None,
    ]
    needs = ({"emissions_kg", "train_tokens"}, {"energy_kwh", "train_tokens", "base_parameters"})
    assert none == [missing in names for names in needs]
