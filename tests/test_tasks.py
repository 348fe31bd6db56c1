"""From a row of data to prompt and completion, and what a row must hold for that."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from green_tune.data import SPLITS
from green_tune.errors import ConfigError, DataError
from green_tune.tasks import TASKS, Task, resolve

ROWS: dict[str, dict[str, Any]] = {
    "qa": {
        "context": "Lima is in Peru.",
        "question": "Where is Lima?",
        "answers": [{"text": "Peru", "answer_start": 11}, {"text": "in Peru", "answer_start": 8}],
    },
    "summarization": {"document": "A long story.", "summary": "A story."},
    "sentiment": {"text": "a fine film ", "label": "positive"},
}
SEEN = {
    "qa": ("Context: Lima is in Peru.\nQuestion: Where is Lima?\nAnswer:\n", "Peru"),
    "summarization": ("Document: A long story.\nSummary:\n", "A story."),
    "sentiment": ("Review: a fine film\nSentiment:\n", "positive"),
}
EACH_TASK = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
TEXTS = st.text("a {}\n\u2028é", min_size=1).filter(lambda text: bool(text.strip()))
LONG = {"qa": "context", "summarization": "document", "sentiment": "text"}

BAD_ANSWERS: tuple[Any, ...] = (
    *([], {}, None, 5, "Peru", ["Peru"], [5], [{}]),
    *([{"text": None}], [{"text": 5}], [[]], {"text": "Peru"}, {"text": []}, {"text": [None]}),
    *([{"text": "Peru"}, {"text": None}], [{"text": "Peru"}, "Peru"], {"text": ["Peru", 5]}),
)


def refusal(task: str, **changed: Any) -> str:
    with pytest.raises(DataError) as caught:
        resolve(task).example(ROWS[task] | changed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@EACH_TASK
def test_a_row_becomes_a_prompt_and_a_completion(task: Task) -> None:
    example = task.example(ROWS[task.name])
    assert (example.prompt, example.completion) == SEEN[task.name]


@EACH_TASK
@settings(deadline=None)
@given(text=TEXTS)
def test_only_the_long_field_is_the_body_and_it_is_kept_verbatim(task: Task, text: str) -> None:
    example = task.example(ROWS[task.name] | {LONG[task.name]: text})
    usual = task.example(ROWS[task.name])
    assert example.body == text.strip()
    assert (example.head, example.tail) == (usual.head, usual.tail)
    assert example.prompt == usual.head + text.strip() + usual.tail


@settings(deadline=None)
@given(question=TEXTS, answer=TEXTS)
def test_the_boundary_is_a_line_break_then_no_blank(question: str, answer: str) -> None:
    example = TASKS["qa"].example(
        {"context": "c", "question": question, "answers": [{"text": answer}]}
    )
    assert example.prompt.endswith("\n")
    assert example.completion == answer.strip()
    assert question.strip() in example.tail


def test_braces_in_a_text_are_only_text() -> None:
    row = {"context": "{question}", "question": "{context} {0} }{", "answers": [{"text": "{}"}]}
    example = TASKS["qa"].example(row)
    assert example.prompt == "Context: {question}\nQuestion: {context} {0} }{\nAnswer:\n"
    assert example.completion == "{}"


def test_answers_may_come_as_the_hub_stores_them() -> None:
    answers = {"text": ["Peru", "in Peru"], "answer_start": [11, 8]}
    assert TASKS["qa"].example(ROWS["qa"] | {"answers": answers}) == TASKS["qa"].example(ROWS["qa"])


def test_every_distinct_answer_is_a_reference_and_the_first_is_taught() -> None:
    texts = ["Peru ", "in Peru", "Peru", " in Peru", "peru"]
    example = TASKS["qa"].example(ROWS["qa"] | {"answers": [{"text": text} for text in texts]})
    assert example.references == ("Peru", "in Peru", "peru")
    assert example.completion == "Peru"


@pytest.mark.parametrize("task", ["summarization", "sentiment"])
def test_other_tasks_accept_their_completion_alone(task: str) -> None:
    assert TASKS[task].example(ROWS[task]).references == (SEEN[task][1],)


@EACH_TASK
def test_only_labels_are_scored_without_generating(task: Task) -> None:
    assert (task.quality == "labels") == (task.max_new_tokens == 0)


@pytest.mark.parametrize(
    ("label", "word"), [(0, "negative"), (1, "positive"), ("mixed", "mixed"), (" bad ", "bad")]
)
def test_a_label_is_a_word_or_its_number(label: Any, word: str) -> None:
    assert TASKS["sentiment"].example({"text": "a", "label": label}).completion == word


@EACH_TASK
def test_a_missing_field_is_named_with_all_that_are_needed(task: Task) -> None:
    for field in task.fields:
        row = {name: value for name, value in ROWS[task.name].items() if name != field}
        with pytest.raises(DataError) as caught:
            task.example(row)
        needs = f"field '{field}' is missing; {task.name} needs {', '.join(task.fields)}"
        assert str(caught.value) == needs


@pytest.mark.parametrize(
    ("task", "field"),
    [
        ("qa", "context"),
        ("qa", "question"),
        ("summarization", "document"),
        ("summarization", "summary"),
        ("sentiment", "text"),
    ],
)
@pytest.mark.parametrize("bad", [5, None, True, "", " \n", [], ["a"], {}, "half a pair \ud83d"])
def test_a_field_that_is_no_text_is_named(task: str, field: str, bad: Any) -> None:
    line = refusal(task, **{field: bad})
    assert line.startswith(f"field '{field}' is ")
    assert "text" in line


@pytest.mark.parametrize("bad", BAD_ANSWERS, ids=str)
def test_answers_of_another_shape_are_refused_with_the_right_one(bad: Any) -> None:
    line = refusal("qa", answers=bad)
    assert line.startswith("field 'answers' is ")
    assert '[{"text": ' in line


@pytest.mark.parametrize("answer", ["", " \n", "half a pair \ud83d"])
def test_an_answer_without_words_is_refused(answer: str) -> None:
    for answers in ([{"text": answer}], [{"text": "Peru"}, {"text": answer}]):
        assert refusal("qa", answers=answers).startswith("field 'answers' is ")


@pytest.mark.parametrize("label", [None, 2, -1, True, False, 1.0, "", " ", ["positive"], {}])
def test_a_label_that_is_neither_a_word_nor_0_or_1_is_shown(label: Any) -> None:
    line = refusal("sentiment", label=label)
    assert line.startswith(f"field 'label' is {label!r}")
    assert "0" in line
    assert "1" in line


def test_an_unknown_task_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve("translation")
    assert str(caught.value) == "task=translation is unknown; known: qa, summarization, sentiment"


@EACH_TASK
def test_the_hub_data_gives_the_splits_and_fields_that_are_needed(task: Task) -> None:
    assert set(SPLITS) <= set(task.hub.splits)
    assert set(task.hub.columns.values()) <= set(task.fields)
