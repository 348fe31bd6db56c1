"""Task quality: how good predictions are against references, as shares from 0 to 1.

The door to torchmetrics (with nltk's stemmer) and scikit-learn. All is text in and numbers out:
it knows no model, no tokenizer and no task, and asks no network.
"""

from collections.abc import Sequence, Sized

from sklearn.metrics import accuracy_score, f1_score  # type: ignore[import-untyped]
from torchmetrics.functional.text import rouge_score, squad

_ROUGE = ("rouge1", "rouge2", "rougeL")  # not rougeLsum, which downloads a sentence splitter


def question_answering(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Mean `exact_match` and token `f1`, each with the reference that suits a prediction best.

    Case, ASCII punctuation, English articles and blanks do not count. Texts of nothing else are
    equal to each other and to an empty one.

    Source: the official evaluation of SQuAD 1.1 (Rajpurkar et al. 2016, arXiv:1606.05250).

    Raises:
        ValueError: nothing to score, unequal numbers, or a question without a reference.
    """
    _check(predictions, references)
    if not all(references):
        raise ValueError("a question without a reference cannot be scored")
    answered = [{"prediction_text": text, "id": str(n)} for n, text in enumerate(predictions)]
    accepted = [
        {"answers": {"text": list(texts), "answer_start": [0] * len(texts)}, "id": str(n)}
        for n, texts in enumerate(references)
    ]
    percent = squad(answered, accepted)  # type: ignore[arg-type]  # its lists are invariant
    return {name: float(percent[name]) / 100 for name in ("exact_match", "f1")}


def summaries(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F-measures of shared words, word pairs and longest common subsequences.

    Words are runs of a-z and 0-9 in lower case, Porter-stemmed if longer than three letters; all
    other letters part words, so a text in another script scores 0.

    Source: ROUGE (Lin 2004, aclanthology.org/W04-1013), as Google's rouge-score computes it.

    Raises:
        ValueError: nothing to score, or unequal numbers.
    """
    _check(predictions, references)
    targets = [[text] for text in references]
    scores = rouge_score(list(predictions), targets, use_stemmer=True, rouge_keys=_ROUGE)
    return {name: float(scores[f"{name}_fmeasure"]) for name in _ROUGE}


def labels(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The `accuracy`, and the `f1` of each label that occurs on either side, averaged.

    A label that is only predicted, or never predicted, has an F1 of 0.

    Raises:
        ValueError: nothing to score, or unequal numbers.
    """
    _check(predictions, references)
    given, right = list(predictions), list(references)
    return {
        "accuracy": float(accuracy_score(right, given)),
        "f1": float(f1_score(right, given, average="macro", zero_division=0.0)),
    }


def _check(predictions: Sized, references: Sized) -> None:
    """The libraries answer not-a-number or score the shorter part."""
    if not len(predictions) == len(references) > 0:
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
