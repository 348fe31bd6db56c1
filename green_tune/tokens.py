"""Examples as token ids: what a model reads, and where its loss is taken.

A prompt and its completion are tokenised apart and joined, so the boundary is exact with every
tokenizer. It works on any tokenizer of transformers and imports none.
"""

from collections.abc import Sequence
from typing import Any, TypedDict
from zlib import crc32

from green_tune import predictor
from green_tune.errors import DataError, ModelError
from green_tune.tasks import Example

CHARS_PER_TOKEN = 4  # of English text, assumed where there is no tokenizer


class Encoded(TypedDict):
    """One example in tokens: [BOS] prompt completion [EOS].

    The last `labelled` ids are the completion with its end token; `cut` is true when the long
    field of the prompt was shortened to fit. `number` is its place among the examples given.
    """

    input_ids: list[int]
    labelled: int
    completion_bytes: int
    cut: bool
    number: int


class Chunks:
    """Stands for a tokenizer that is not on this machine: a token for each four characters.

    What texts have in common they have in common as tokens, so shared prompts are found. How many
    tokens there are is then assumed, not counted: of English, tokenizers of 32,000 to 256,000 make
    tokens of some four characters.
    """

    bos_token_id, eos_token_id = -1, -2

    def __call__(self, texts: Sequence[str], **_: object) -> dict[str, list[list[int]]]:
        """Each text as numbers, which stand for what they are made of."""
        return {"input_ids": [_chunks(text) for text in texts]}


def _chunks(text: str) -> list[int]:
    starts = range(0, len(text), CHARS_PER_TOKEN)
    return [crc32(text[start : start + CHARS_PER_TOKEN].encode()) for start in starts]


class Encoder:
    """Turns examples into at most `max_seq_len` tokens each."""

    def __init__(self, tokenizer: Any, max_seq_len: int) -> None:
        self._tokenizer = tokenizer
        self._max = max_seq_len
        self._start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the base model's tokenizer has no end token, so a completion would never end: "
                "name one as eos_token in its tokenizer_config.json"
            )
        self._end = [tokenizer.eos_token_id]

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """The examples that fit, in order; too long ones lose the end of their long field.

        An example whose completion and question alone do not fit is left out: its answer is
        never cut, since a half answer teaches to stop in the middle.

        Raises:
            DataError: not one example fits.
        """
        prompts = predictor.token_ids(self._tokenizer, [one.prompt for one in examples])
        completions = predictor.token_ids(self._tokenizer, [one.completion for one in examples])
        rows = zip(range(len(examples)), examples, prompts, completions, strict=True)
        encoded = [one for row in rows if (one := self._join(*row))]
        if not encoded:
            raise DataError(f"not one example fits into max_seq_len={self._max} tokens")
        return encoded

    def _join(
        self, number: int, example: Example, prompt: list[int], completion: list[int]
    ) -> Encoded | None:
        completion = completion + self._end
        room = self._max - len(self._start) - len(completion)
        parts = (example.head, example.body, example.tail)
        fitted = predictor.fitted(self._tokenizer, parts, prompt, room)
        if fitted is None:
            return None
        return Encoded(
            input_ids=self._start + fitted + completion,
            labelled=len(completion),
            completion_bytes=len(example.completion.encode()),
            cut=len(fitted) < len(prompt),
            number=number,
        )
