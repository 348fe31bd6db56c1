"""Examples as tokens: whole answers only, and the question survives a cut."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from green_tune.errors import DataError, ModelError
from green_tune.tasks import Example
from green_tune.tokens import Chunks, Encoded, Encoder

START, END = 0, 1
TEXTS = st.text("ab é\n𝄞the", max_size=40)
EXAMPLES = st.builds(
    Example,
    head=st.just("Context: "),
    body=TEXTS,
    tail=TEXTS.map(lambda question: f"\nQuestion: {question}\n"),
    completion=st.text("Paris é", min_size=1, max_size=20),
)


@cache
def tokenizer(merges: int = 0, marks: bool = True) -> Any:
    """Byte-level: one token a byte, and `merges` longer ones."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2 + len(alphabet) + merges,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(["Context: the Question: Paris Parish"] * 9, trainer)
    if marks:  # as Llama's own adds its marks
        pair = [("<s>", START), ("</s>", END)]
        bpe.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=pair)
    special = {"bos_token": "<s>", "eos_token": "</s>"} if marks else {}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **special)  # type: ignore[no-untyped-call]


def encode(examples: Sequence[Example], length: int, **kind: Any) -> list[Encoded]:
    return Encoder(tokenizer(**kind), length).encode(examples)


def ids_of(text: str, merges: int = 0) -> list[int]:
    return list(tokenizer(merges)(text, add_special_tokens=False)["input_ids"])


def read(ids: list[int]) -> str:
    return str(tokenizer().decode(ids, clean_up_tokenization_spaces=False))


def example(body: str, completion: str = "Lima", tail: str = "?\n") -> Example:
    return Example(head="", body=body, tail=tail, completion=completion)


def test_an_example_is_start_prompt_completion_end() -> None:
    (one,) = encode([Example(head="a", body="b", tail="c\n", completion="é")], 16)
    ids = [START, *ids_of("abc\n"), *ids_of("é"), END]
    assert one == Encoded(input_ids=ids, labelled=3, completion_bytes=2, cut=False, number=0)


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no end token.*eos_token in its tokenizer_config\.json"):
        encode([example("abc")], 16, marks=False)


@settings(deadline=None)
@given(EXAMPLES, st.integers(30, 120), st.sampled_from([0, 20]))
def test_an_example_keeps_its_answer_and_question_within_the_length(
    one: Example, length: int, merges: int
) -> None:
    try:
        (found,) = encode([one], length, merges=merges)
    except DataError:
        kept = [START, *ids_of(one.head + one.tail, merges), *ids_of(one.completion, merges), END]
        assert len(kept) > length
        return
    ids, split = found["input_ids"], len(found["input_ids"]) - found["labelled"]
    decode = tokenizer(merges).decode
    assert len(ids) <= length
    assert ids[0] == START
    assert ids[split:] == [*ids_of(one.completion, merges), END]
    assert found["completion_bytes"] == len(one.completion.encode())
    prompt = decode(ids[1:split], clean_up_tokenization_spaces=False)
    assert prompt.startswith(one.head)
    assert prompt.endswith(one.tail)
    body = prompt[len(one.head) : len(prompt) - len(one.tail)]
    assert one.body.startswith(body)
    assert found["cut"] == (body != one.body)


@pytest.mark.parametrize(("length", "body"), [(18, "0123456789"), (17, "012345678"), (8, "")])
def test_no_more_is_cut_than_must_be(length: int, body: str) -> None:
    (one,) = encode([example("0123456789")], length)
    assert len(one["input_ids"]) == length
    assert read(one["input_ids"]) == f"<s>{body}?\nLima</s>"
    assert one["cut"] == (body != "0123456789")


def test_a_cut_never_splits_a_character() -> None:
    for length in range(8, 32):
        (one,) = encode([example("é𝄞" * 4)], length)
        assert "\ufffd" not in read(one["input_ids"])


def test_examples_that_cannot_fit_are_left_out_and_the_others_keep_their_order() -> None:
    answers = ["one", "x" * 30, "two", "three"]
    found = encode([example("text " * 9, answer) for answer in answers], 20)
    assert [read(one["input_ids"][-one["labelled"] :]) for one in found] == [
        "one</s>",
        "two</s>",
        "three</s>",
    ]


@pytest.mark.parametrize("hopeless", [example("a", "x" * 30), example("a", "b", tail="?" * 30)])
def test_a_length_that_fits_nothing_is_named(hopeless: Example) -> None:
    with pytest.raises(DataError, match="not one example fits into max_seq_len=20 tokens"):
        encode([hopeless], 20)


def assumed(examples: Sequence[Example], length: int = 512) -> list[Encoded]:
    """In the tokens of a tokenizer that is not on this machine."""
    return Encoder(Chunks(), length).encode(examples)


@given(EXAMPLES)
def test_without_a_tokenizer_four_characters_are_a_token(one: Example) -> None:
    (found,) = assumed([one])
    answer, prompt = (-(-len(text) // 4) for text in (one.completion, one.prompt))
    assert found["labelled"] == answer + 1
    assert abs(len(found["input_ids"]) - (1 + prompt + answer + 1)) <= 2  # its three parts, alone
    assert found["completion_bytes"] == len(one.completion.encode())


def test_what_texts_share_they_share_as_assumed_tokens() -> None:
    passage = "The river rises in the hills. "
    first, second, other = assumed(
        [example(passage * 3, tail=tail) for tail in ("Where?\n", "Whither?\n")]
        + [example("A river falls from the hills. " * 3)]
    )
    same = [a == b for a, b in zip(first["input_ids"], second["input_ids"], strict=False)]
    assert same.index(False) >= 1 + len(passage * 3) // 4
    assert first["input_ids"][1] != other["input_ids"][1]


def test_an_assumed_text_is_cut_to_the_length_as_any_other() -> None:
    (one,) = assumed([example("x" * 400)], 20)
    assert (len(one["input_ids"]), one["cut"]) == (20, True)
    with pytest.raises(DataError, match="not one example fits into max_seq_len=16 tokens"):
        assumed([example("a", "x" * 80)], 16)


def test_a_mark_that_stands_in_a_text_is_only_text() -> None:
    (one,) = encode([example("<s>old</s>", "no</s>!")], 64)
    assert one["input_ids"].count(START) == one["input_ids"].count(END) == 1
    assert one["labelled"] == len("no</s>!") + 1
