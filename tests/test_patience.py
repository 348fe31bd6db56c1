import math

import pytest

from green_tune import patience


def test_a_gram_gains_what_the_loss_has_fallen_by() -> None:
    assert patience.gain_per_g((3.0, 10.0), (2.5, 12.0)) == pytest.approx(0.25)
    assert patience.gain_per_g((3.0, 10.0), (3.2, 12.0)) == pytest.approx(-0.1)
    assert patience.gain_per_g((3.0, 10.0), (2.0, 10.0)) == math.inf


@pytest.mark.parametrize(
    ("course", "ends"),
    [
        ([(3.0, 0.0)], False),
        ([(3.0, 0.0), (3.0, 1.0)], False),  # once may be noise
        ([(3.0, 0.0), (3.0, 1.0), (3.0, 2.0)], True),
        ([(3.0, 0.0), (2.0, 1.0), (1.95, 2.0)], False),
        ([(3.0, 0.0), (2.0, 1.0), (1.95, 2.0), (1.92, 3.0)], True),
        ([(3.0, 0.0), (2.0, 1.0), (2.4, 2.0), (1.8, 3.0)], False),
    ],
)
def test_it_ends_when_two_stretches_in_a_row_gain_too_little(
    course: list[tuple[float, float]], ends: bool
) -> None:
    assert patience.exhausted(course, 0.1) is ends
