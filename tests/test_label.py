"""The label: small, the same each time, whole whatever the names are, and put in words."""

import io
from dataclasses import replace
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from test_card import BUILT, CPU, GPU, HOSTILE, HUB, facts, full, record

from green_tune import label
from green_tune.facts import CardFacts

LONG = "a-base-model-of-somebody-with-a-very-long-name-" * 4 + "v0.3"
CASES = {
    "gpu": full(),
    "cpu, assumed": facts(record(CPU), BUILT),
    "long": full(record({**GPU, "device": LONG}), base={**HUB, "name": LONG}, model_name=LONG),
    "hostile": full(
        record({**GPU, "device": HOSTILE, "intensity_zone": HOSTILE}),
        base={**HUB, "name": HOSTILE},
        model_name=HOSTILE,
    ),
    "heavy": full(emissions_kg=123456.0, emissions_low_kg=1e5, emissions_high_kg=2e5),
    "on the way": facts(step=20, emissions_low_kg=None, emissions_high_kg=None),
}


def drawn(one: CardFacts, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The figure that becomes the PNG."""
    kept: list[Any] = []

    def keep(figure: Figure) -> bytes:
        kept.append(figure)
        out = io.BytesIO()
        Image.new("RGB", (1, 1)).save(out, "png")
        return out.getvalue()

    monkeypatch.setattr(label, "to_png", keep)
    label.draw(one)
    return kept[0]  # type: ignore[no-any-return]


def said(one: CardFacts, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts = drawn(one, monkeypatch).findobj(Text)
    return [text.get_text() for text in texts if isinstance(text, Text)]


@pytest.mark.parametrize("case", CASES)
def test_a_label_is_a_small_picture_of_twice_800_by_450_pixels(case: str) -> None:
    png = label.draw(CASES[case])
    picture = Image.open(io.BytesIO(png))
    assert (picture.format, picture.size) == ("PNG", (1600, 900))
    assert len(png) < 80_000


@pytest.mark.parametrize("case", CASES)
def test_every_text_of_a_label_lies_inside_and_none_covers_another(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = drawn(CASES[case], monkeypatch)
    boxes = [t.get_window_extent() for t in figure.findobj(Text) if isinstance(t, Text)]
    assert len(boxes) > 10
    for number, box in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= 1600
        assert 0 <= box.y0 < box.y1 <= 900
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_equal_facts_are_equal_bytes_and_other_facts_are_not() -> None:
    one = label.draw(full())
    assert label.draw(full()) == one
    assert label.draw(full(val_loss=9.5)) != one
    assert not Image.open(io.BytesIO(one)).info


def test_the_grams_stand_whole_with_how_they_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    one = full(emissions_kg=2.164e-07)
    assert {"216 µg CO2e", "energy 70 % measured, 30 % modelled", "carbon intensity:",
            "France at 56.039 g/kWh x PUE 1.2"} < set(said(one, monkeypatch))  # fmt: skip
    assert "123456 kg CO2e" not in said(CASES["heavy"], monkeypatch)  # three digits
    assert "123000 kg CO2e" in said(CASES["heavy"], monkeypatch)


def test_an_assumed_intensity_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = said(CASES["cpu, assumed"], monkeypatch)
    assert texts[texts.index("carbon intensity, assumed:") + 1] == "world average at 475 g/kWh"


def test_the_figures_are_there_that_are_known_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, bare = said(full(), monkeypatch), said(facts(), monkeypatch)
    later = {"exact match": "0.512", "whole sweep, 40 trials": "3.25 kg CO2e",
             "per 1,000 predictions": "9.5 g CO2e"}  # fmt: skip
    for name, value in later.items():
        assert whole[whole.index(name) + 1] == value
        assert name not in bare
    for name in ("energy", "A100-SXM4-40GB", "validation loss"):
        assert name in bare


def test_several_gpus_are_counted_and_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "4 x A100-SXM4-40GB" in said(full(gpus=4), monkeypatch)


def test_the_words_say_what_the_picture_does() -> None:
    words = label.alt(full(record(CPU)))
    for part in ("fine-tuned for qa", "CO2e", "assumed: world average", "exact match 0.512",
                 "whole sweep 3.25 kg", "per 1,000 predictions"):  # fmt: skip
        assert part in words
    assert "\n" not in label.alt(CASES["hostile"])
    assert "sweep" not in label.alt(replace(full(), study=None))
