"""An appraisal over a made-up predictor and a machine of constant power: scores and energy."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from fakes import JOULES_PER_KWH, FakeClock, running

from green_tune import appraisal, bars
from green_tune.appraisal import Appraisal
from green_tune.data import Split
from green_tune.errors import Stopped
from green_tune.meter import Meter
from green_tune.tasks import Example, Quality

WATTS = 28.0  # of the fake's CPUs and memory together
KWH_PER_S = WATTS / JOULES_PER_KWH


class MadeUp:
    """Takes a second a row with the adapter and half of one without; knows the labels with it."""

    def __init__(self, clock: FakeClock, batch: int = 2) -> None:
        self.recipe = {"quality": "labels"}
        self.clock, self.batch, self.seconds = clock, batch, 1.0

    def predict(
        self, rows: Sequence[Mapping[str, str]], *, on_done: Callable[[int], object] = int
    ) -> list[str]:
        for start in range(0, len(rows), self.batch):
            part = rows[start : start + self.batch]
            self.clock.pass_(self.seconds * len(part))
            on_done(len(part))
        return [row["label"] if self.seconds == 1 else "bad" for row in rows]

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        self.seconds = 0.5
        yield
        self.seconds = 1.0


def example(body: str = "", completion: str = "", references: Sequence[str] = ()) -> Example:
    return Example(head="", body=body, tail="", completion=completion, references=tuple(references))


def split(*labels: str) -> Split:
    rows = [{"text": "x", "label": label} for label in labels]
    return Split(source="made up", rows=rows, examples=[example(completion=x) for x in labels])


def appraise(made: Any, of: Split, meter: Meter, train: Sequence[Example] = ()) -> Appraisal:
    return appraisal.appraise(made, of, train, meter, lambda: None)


def test_each_models_energy_is_what_its_own_rows_took_and_both_make_up_the_phase() -> None:
    clock = FakeClock()
    with running(clock) as meter:
        found = appraise(MadeUp(clock), split("good", "bad", "good", "bad", "bad"), meter)
        phases = meter.close()[0].phases()
    assert found.adapter.energy_kwh == pytest.approx(5 * KWH_PER_S, rel=1e-9)
    assert found.base.energy_kwh == pytest.approx(2.5 * KWH_PER_S, rel=1e-9)
    assert found.adapter.runtime_h * 3600 == pytest.approx(5, rel=1e-9)
    both = found.adapter.energy_kwh + found.base.energy_kwh
    assert phases[appraisal.PHASE].energy_kwh == pytest.approx(both, rel=1e-12)
    assert phases["setup"].runtime_h * 3600 == pytest.approx(5 + 2.5, rel=1e-9)  # warming up


def test_each_model_has_the_scores_of_its_own_texts() -> None:
    clock = FakeClock()
    with running(clock) as meter:
        found = appraise(MadeUp(clock), split("good", "bad", "bad", "bad"), meter)
        meter.close()
    assert found.adapter.scores["accuracy"] == 1
    assert found.base.scores["accuracy"] == 0.75
    metrics = found.to_metrics()
    assert metrics["quality.accuracy"] == 1
    assert metrics["start_quality.accuracy"] == metrics["baseline_quality.accuracy"] == 0.75
    assert metrics["predictions"] == metrics["quality.examples"] == 4


def test_the_bar_of_each_model_is_moved_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: dict[str, list[int]] = {}

    class Bar:
        def __init__(self, label: str, total: int) -> None:
            self.counts = moved[label] = [-total]

        def update(self, count: int) -> None:
            self.counts.append(count)

    monkeypatch.setattr(bars, "bar", lambda label, total: nullcontext(Bar(label, total)))
    clock = FakeClock()
    with running(clock) as meter:
        appraise(MadeUp(clock), split("good", "bad", "good"), meter)
        meter.close()
    assert moved == {"adapter": [-3, 2, 1], "base": [-3, 2, 1]}


def test_a_stop_between_two_batches_leaves_at_once_and_what_was_spent_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopped() -> None:
        raise Stopped(15)

    monkeypatch.setattr("green_tune.stop.check", stopped)
    clock = FakeClock()
    with running(clock) as meter:
        with pytest.raises(Stopped):
            appraise(MadeUp(clock), split(*["good"] * 10), meter)
        phases = meter.close()[0].phases()
    assert phases[appraisal.PHASE].energy_kwh == pytest.approx(2 * KWH_PER_S, rel=1e-9)


def test_the_majority_is_of_the_training_data_and_of_the_examples_where_there_is_none() -> None:
    labels = split("bad", "bad", "good").examples
    train = split("good", "good", "bad").examples
    assert appraisal.trivial("labels", labels, train) == ("majority (good)", ["good"] * 3)
    assert appraisal.trivial("labels", labels, ()) == ("majority (bad)", ["bad"] * 3)


LONG = "First of all? Second! Third, at 3.5 per cent. Fourth."


@pytest.mark.parametrize(
    ("summaries", "name", "lead"),
    [
        (["One.", "One."], "lead-1", "First of all?"),
        (["One.", "One. Two.", "One. Two. Three."], "lead-2", "First of all? Second!"),
        (["no mark at its end"], "lead-1", "First of all?"),
        (["A. B. C. D. E. F."], "lead-6", LONG),
    ],
)
def test_the_lead_has_as_many_sentences_as_a_usual_summary(
    summaries: list[str], name: str, lead: str
) -> None:
    train = [example(completion=text) for text in summaries]
    assert appraisal.trivial("summaries", [example(LONG)], train) == (name, [lead])


@pytest.mark.parametrize(
    ("passage", "answer"),
    [(LONG, "First of all?"), ("no mark", "no mark"), ("One.\nTwo.", "One."), ("", "")],
)
def test_a_question_is_answered_with_the_passages_first_sentence(passage: str, answer: str) -> None:
    assert appraisal.trivial("answers", [example(passage)], ())[1] == [answer]


@pytest.mark.parametrize(
    ("quality", "texts", "scored"),
    [
        ("answers", ["the mill"], {"exact_match": 1.0, "f1": 1.0}),
        ("labels", ["a mill"], {"accuracy": 1.0, "f1": 1.0}),
    ],
)
def test_answers_are_held_against_every_accepted_one_and_labels_against_the_right_one(
    quality: Quality, texts: list[str], scored: dict[str, float]
) -> None:
    one = example(completion="a mill", references=["a bridge", "Mill"])
    assert appraisal.score(quality, texts, [one]) == scored
