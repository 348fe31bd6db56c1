"""Task metrics against values worked out by hand, and without a network."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from green_tune.data import load
from green_tune.scores import labels, question_answering, summaries
from green_tune.tasks import TASKS

ROOT = Path(__file__).parents[1]
TEXTS = st.text("aA .,é\nthecat\u4e2d")
LISTENER = """
import os, sys

def hook(event, _):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        os.write(2, event.encode())
        os._exit(3)

sys.addaudithook(hook)
from green_tune import scores
scores.question_answering(["Lima"], [["Lima"]])
scores.summaries(["Police killed a man."], ["Police kill men."])
scores.labels(["good"], ["bad"])
"""


@pytest.mark.parametrize(
    ("prediction", "references", "exact_match", "f1"),
    [
        ("Peru", ["Peru"], 1, 1),
        ("Chile", ["Peru"], 0, 0),
        ("", ["Peru"], 0, 0),
        (" \n", ["Peru"], 0, 0),
        ("The Eiffel Tower!", ["eiffel tower"], 1, 1),  # article, case, punctuation
        ("an  Apple \n", ["apple"], 1, 1),
        ("U.S.A.", ["USA"], 1, 1),
        ("theory", ["ory"], 0, 0),  # an article is a word of its own
        ("well-known", ["well known"], 0, 0),  # a hyphen leaves no blank behind
        ("ÉCOLE", ["école"], 1, 1),
        ("ecole", ["école"], 0, 0),
        ("“Peru”", ["Peru"], 0, 0),  # the official script knows ASCII punctuation only
        ("the", ["A"], 1, 1),  # nothing is left of either
        ("in 1976", ["1976"], 0, 2 / 3),  # precision 1/2, recall 1
        ("yes yes", ["yes"], 0, 2 / 3),  # a word is found once: precision 1/2, recall 1
        ("Saint Bernadette Soubirous", ["Bernadette"], 0, 1 / 2),  # precision 1/3, recall 1
        ("Peru", ["in Peru", "Peru"], 1, 1),
        ("south of Peru", ["Peru", "the south of Chile"], 0, 2 / 3),  # 1/2 and, better, 2 of 3
    ],
)
def test_an_answer_is_as_good_as_its_best_reference(
    prediction: str, references: list[str], exact_match: float, f1: float
) -> None:
    score = question_answering([prediction], [references])
    assert score == pytest.approx({"exact_match": exact_match, "f1": f1})


def test_answers_count_alike() -> None:
    predictions = ["Peru", "in 1976", ""]
    references = [("Peru",), ("1976",), ("Lima", "the city of Lima")]
    score = question_answering(predictions, references)
    assert score == pytest.approx({"exact_match": 1 / 3, "f1": (1 + 2 / 3 + 0) / 3})


# Against "the cat sat on the mat": 6 words, 5 pairs.
@pytest.mark.parametrize(
    ("prediction", "rouge1", "rouge2", "rouge_l"),
    [
        ("The cat sat on the mat.", 1, 1, 1),
        ("", 0, 0, 0),
        (" .\n", 0, 0, 0),
        ("dogs bark", 0, 0, 0),
        # 4 of 4 and of 6 words; 2 of 3 and of 5 pairs; 4 in order
        ("the cat the mat", 4 / 5, 1 / 2, 4 / 5),
        # 3 of 3 and of 6 words; 1 of 2 and of 5 pairs; 2 in order
        ("mat the cat", 2 / 3, 2 / 7, 4 / 9),
        # 1 of 1 and of 6 words; no pair
        ("mat", 2 / 7, 0, 2 / 7),
    ],
)
def test_a_summary_shares_words_pairs_and_order(
    prediction: str, rouge1: float, rouge2: float, rouge_l: float
) -> None:
    score = summaries([prediction], ["the cat sat on the mat"])
    assert score == pytest.approx({"rouge1": rouge1, "rouge2": rouge2, "rougeL": rouge_l})


@pytest.mark.parametrize(
    ("prediction", "reference", "rouge1"),
    [
        ("police kills", "POLICE KILLED", 1),  # stems
        ("gas", "ga", 0),  # three letters are not stemmed
        ("state-of-the-art", "state of the art", 1),
        ("café", "caf", 1),  # é parts words, as in Google's rouge-score
        ("\u4e2d\u6587", "\u4e2d\u6587", 0),
        ("a", "", 0),
    ],
)
def test_words_are_stems_of_plain_letters(prediction: str, reference: str, rouge1: float) -> None:
    assert summaries([prediction], [reference])["rouge1"] == rouge1


def test_summaries_count_alike() -> None:
    assert summaries(["one two", ""], ["one two", "three"]) == pytest.approx(
        {"rouge1": 1 / 2, "rouge2": 1 / 2, "rougeL": 1 / 2}
    )


@pytest.mark.parametrize(
    ("predictions", "references", "accuracy", "f1"),
    [
        ("npp", "npp", 1, 1),
        ("p", "p", 1, 1),
        ("n", "p", 0, 0),
        ("nppp", "nnpp", 3 / 4, (2 / 3 + 4 / 5) / 2),  # n: 1 and 1/2; p: 2/3 and 1
        ("pp", "np", 1 / 2, (0 + 2 / 3) / 2),  # n is never predicted; p: 1/2 and 1
        ("pn", "pp", 1 / 2, (0 + 2 / 3) / 2),  # n is only predicted; p: 1 and 1/2
        ("abc", "abd", 2 / 3, (1 + 1 + 0 + 0) / 4),
    ],
)
def test_labels_weigh_alike_in_f1_however_rare(
    predictions: str, references: str, accuracy: float, f1: float
) -> None:
    score = labels(tuple(predictions), list(references))
    assert score == pytest.approx({"accuracy": accuracy, "f1": f1})


def test_a_label_may_be_empty_in_a_prediction() -> None:
    assert labels(["", "good"], ["good", "good"])["accuracy"] == 1 / 2


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_a_score_is_a_share_and_a_float(pairs: list[tuple[str, str]]) -> None:
    given, right = zip(*pairs, strict=True)
    scores = (
        question_answering(given, [[text] for text in right]),
        summaries(given, right),
        labels(given, right),
    )
    for score in scores:
        assert all(type(value) is float and 0 <= value <= 1 for value in score.values())


@pytest.mark.parametrize(
    ("predictions", "references"), [([], []), (["a"], []), ([], ["a"]), (["a"], ["a", "b"])]
)
def test_nothing_and_unequal_numbers_are_refused(
    predictions: Sequence[str], references: Sequence[str]
) -> None:
    for score in (question_answering, summaries, labels):
        with pytest.raises(ValueError, match=f"^{len(predictions)} .* for {len(references)} "):
            score(predictions, references)


def test_a_question_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="without a reference"):
        question_answering(["a", "b"], [("a",), ()])


@pytest.mark.parametrize("reference", [0, -1])
def test_any_reference_answers_a_real_question(shared: Path, reference: int) -> None:
    examples = load(TASKS["qa"], str(shared / "qa")).validation
    given = [example.references[reference] for example in examples]
    score = question_answering(given, [example.references for example in examples])
    assert score == {"exact_match": 1, "f1": 1}


def test_the_lead_of_a_real_document_is_a_poor_summary(shared: Path) -> None:
    examples = load(TASKS["summarization"], str(shared / "summarization")).validation[:100]
    right = [example.completion for example in examples]
    lead = summaries([example.body[:150] for example in examples], right)
    assert summaries(right, right) == {"rouge1": 1, "rouge2": 1, "rougeL": 1}
    assert 0 < lead["rouge2"] < lead["rougeL"] < lead["rouge1"] < 1 / 2


def test_one_label_for_all_scores_its_share_of_real_reviews(shared: Path) -> None:
    examples = load(TASKS["sentiment"], str(shared / "sentiment")).validation
    right = [example.completion for example in examples]
    share = right.count("positive") / len(right)
    score = labels(["positive"] * len(right), right)
    # precision is the share and recall 1; the other label's F1 is 0
    assert score == pytest.approx({"accuracy": share, "f1": share / (share + 1)})


def test_no_network_is_asked_and_nothing_warns() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LISTENER],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
