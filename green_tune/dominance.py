"""When a trial can be stopped: all that it can still become, another trial has beaten already.

It owns the judgement over courses of validations: how far a loss may still fall, what the rest
will cost, and who dominates that. Pure functions; it deliberately knows nothing of studies,
samplers or how a training is stopped. What is certain in it and what is modelled:

    measured   the losses so far, and what is spent now, which can only grow
    modelled   what is spent later: the trial's own mean rate goes on; the rule counts on a part
               of that only (`Bound.safety`)
    modelled   how far its loss may still fall: as the finished trials' did (`Bound.quantile`)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
from numpy.typing import NDArray

from green_tune.results import Course

Array = NDArray[np.float64]

DONE = 1 - 1e-6  # a stored course rounds its progress to six places
LEAST = 2  # evaluations between which a rate can be seen
MOST_MOMENTS = 100  # still to come; more of them than any schedule has would only cost time
KG_TO_G = 1000


@dataclass(frozen=True, kw_only=True)
class Bound:
    """How sure the rule must be before it stops a trial.

    `quantile` is the confidence, at each later moment, that a trial whose course is like those of
    the finished ones falls by no more than is granted to it. With n finished ones it cannot
    exceed n / (n + 1), which is 80 % for four: the largest drop of theirs is granted then. A trial
    that falls by more is not lost by that alone: it would also have to reach the front.

    `floor` is in nats and absolute. Relative to the spread of a study's losses it would vanish
    where all trials are nearly equal and noise decides, and explode with one that diverged;
    absolute, it errs towards not stopping where losses are small. 0.02 is about twice the noise
    of one validation over some hundred examples (assumed, not measured).
    """

    quantile: float = 0.9  # of the finished trials' drops, granted to the trial
    evidence: int = 4  # finished trials, fewer say nothing about a quantile
    evaluations: int = 2  # of its own after progress 0, one alone may be noise
    floor: float = 0.02  # nats that every trial is granted
    safety: float = 0.9  # of its modelled further spending that is counted on

    def __post_init__(self) -> None:
        if not (0 <= self.quantile <= 1 and 0 <= self.safety <= 1):
            raise ValueError(f"quantile and safety lie between 0 and 1, not as in {self}")
        if not (self.floor >= 0 and self.evidence >= 1 and self.evaluations >= LEAST):
            raise ValueError(f"floor is from 0, evidence from 1, evaluations from 2, not {self}")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Why a trial can be stopped; all but the name are modelled, see the module."""

    by: str  # the trial that dominates the best end it could have
    val_loss_bound: float  # nats, the least that it could end with
    emissions_kg: float  # expected at its end
    saved_kg: float  # what stopping saves: a forecast, never to be shown as a measurement

    def __str__(self) -> str:
        return (
            f"dominated by {self.by}: at best {self.val_loss_bound:.3f} nats for "
            f"{_said(self.emissions_kg)}; stopping it saves about {_said(self.saved_kg)}"
        )


def judge(
    course: Course,
    finished: Sequence[Course],
    archive: Mapping[str, Course],
    *,
    bound: Bound = Bound(),
) -> Verdict | None:
    """Says whether all that a running trial can still become is dominated; None where it is not.

    It is hopeless iff at each validation to come some archived point has no higher a loss than
    the trial's best so far less what it is granted, for no more than it must have spent by then.

    Args:
        course: the trial's validations so far. Those that are not finite say nothing.
        finished: courses of comparable trials of the study that ended their whole schedule; those
            that do not reach from the trial's progress to the end are no evidence.
        archive: by name, all validations that are results of other trials.
        bound: how sure it must be.
    """
    seen = _curve(course)
    done = max((point.progress for point in course), default=0.0) >= DONE
    if done or np.count_nonzero(seen.progress > 0) < bound.evaluations:
        return None
    evidence = _evidence(finished, seen.progress[-1])
    if len(evidence) < bound.evidence:
        return None
    moments = _moments(seen)
    reach = seen.loss.min() - _granted(seen, evidence, moments, bound)
    spent = _spent_at(seen, moments, bound.safety)
    by = [_dominator(archive, loss, kg) for loss, kg in zip(reach, spent, strict=True)]
    if by[-1] is None or None in by:
        return None
    end_kg = _end_kg(seen)
    return Verdict(
        by=by[-1],
        val_loss_bound=float(reach[-1]),
        emissions_kg=end_kg,
        saved_kg=end_kg - float(seen.spent_kg[-1]),
    )


def imputed(course: Course, finished: Sequence[Course]) -> tuple[float, float]:
    """What a sampler is told of a stopped trial: its expected end in nats and kg, both modelled.

    The best loss so far less the median of the finished trials' drops from there to their ends
    (none where none reaches that far), and the linear continuation of what was spent.

    Raises:
        ValueError: the course has no finite validation.
    """
    seen = _curve(course)
    if not len(seen.loss):
        raise ValueError(f"there is no finite validation to go on from in {list(course)}")
    now = seen.progress[-1]
    drops = [_drops(curve, now, np.ones(1))[0] for curve in _evidence(finished, now)]
    further = max(0.0, float(np.median(drops))) if drops else 0.0
    return float(seen.loss.min()) - further, _end_kg(seen)


@dataclass(frozen=True, kw_only=True)
class _Curve:
    """The finite part of a course by rising progress, each once; its spending never falls."""

    progress: Array
    loss: Array  # nats
    spent_kg: Array


def _curve(course: Course) -> _Curve:
    """Of validations at one progress the best loss counts, and what was spent after all of them."""
    loss: dict[float, float] = {}
    spent: dict[float, float] = {}
    for point in sorted(course, key=lambda point: point.progress):
        if isfinite(point.progress) and isfinite(point.val_loss) and isfinite(point.emissions_kg):
            at = point.progress
            loss[at] = min(point.val_loss, loss.get(at, inf))
            spent[at] = max(point.emissions_kg, spent.get(at, 0.0))
    return _Curve(
        progress=np.array(list(loss), dtype=float),
        loss=np.array(list(loss.values()), dtype=float),
        spent_kg=np.maximum.accumulate(np.array(list(spent.values()), dtype=float)),
    )


def _evidence(finished: Sequence[Course], now: float) -> list[_Curve]:
    """Those that reach from `now` to the end; outside of that, no drop would be seen in them."""
    curves = [_curve(course) for course in finished]
    return [c for c in curves if len(c.loss) and c.progress[0] <= now and c.progress[-1] >= DONE]


def _moments(seen: _Curve) -> Array:
    """The progress of its validations to come, evenly spaced as so far, up to 1."""
    now = float(seen.progress[-1])
    left = round((1 - now) / float(np.median(np.diff(seen.progress))))
    return np.linspace(now, 1, min(max(left, 1), MOST_MOMENTS) + 1)[1:]


def _drops(curve: _Curve, now: float, moments: Array) -> Array:
    """How far its loss falls from `now` to each moment, in nats; negative where it rises."""
    start = np.interp(now, curve.progress, curve.loss)
    return np.asarray(start - np.interp(moments, curve.progress, curve.loss))


def _granted(seen: _Curve, evidence: Sequence[_Curve], moments: Array, bound: Bound) -> Array:
    """How far the loss may still fall by each moment, in nats; it never shrinks with time.

    Besides the quantile and the floor, the trial's own last drop: one that still falls fast is
    not like those that finished. Weibull's position (n + 1) * quantile is the one that a further
    course of the same kind stays below with that probability (Hyndman and Fan 1996, type 6).
    """
    drops = [_drops(curve, float(seen.progress[-1]), moments) for curve in evidence]
    theirs = np.quantile(drops, bound.quantile, axis=0, method="weibull")
    own = seen.loss[-2] - seen.loss[-1]
    return np.asarray(np.maximum.accumulate(theirs).clip(max(own, bound.floor)))


def _rate(seen: _Curve) -> float:
    """Kilograms for the whole schedule, at the mean rate between its first validation and now.

    With a single one, what is spent counts as spent in proportion to progress.
    """
    if len(seen.progress) > 1:
        return float(np.ptp(seen.spent_kg) / np.ptp(seen.progress))
    return float(seen.spent_kg[0] / seen.progress[0]) if seen.progress[0] > 0 else 0.0


def _spent_at(seen: _Curve, moments: Array, part: float) -> Array:
    """Certain: what is spent. Modelled: the part of the mean rate that is counted on after it."""
    return np.asarray(seen.spent_kg[-1] + part * _rate(seen) * (moments - seen.progress[-1]))


def _end_kg(seen: _Curve) -> float:
    return float(_spent_at(seen, np.ones(1), 1.0)[0])


def _dominator(archive: Mapping[str, Course], loss: float, kg: float) -> str | None:
    """The archived trial with the lowest loss of those that are at least as good in both."""
    better = [
        (point.val_loss, point.emissions_kg, name)
        for name, course in archive.items()
        for point in course
        if point.val_loss <= loss and point.emissions_kg <= kg
    ]
    return min(better)[2] if better else None


def _said(kg: float) -> str:
    return f"{kg:.3g} kg" if kg >= 1 else f"{kg * KG_TO_G:.3g} g"
