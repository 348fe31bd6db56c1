"""An adapter at work: inputs become prompts, and prompts predictions.

This file travels. A registered version holds it as it is, as `green_tune_predictor.py`, and there
it runs without the rest of green-tune: it imports the standard library, and inside of functions
torch, transformers and peft. The training process cuts its prompts and generates with the same
functions, so predictions are the same. It does not know metrics, energy or where adapters are
kept, and it trusts the adapter's folder: who fetches one has to check it.
"""

import hashlib
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Tokens = list[int]
Parts = tuple[str, str, str]  # of a prompt: head, the text that may be cut, tail

log = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
BASE = "GREEN_TUNE_BASE"  # names the base model's place where no argument does
TOKENS = 2**14  # side by side, which LLaMA-2-7B remembers in 8 GiB; halved where they do not fit
ROWS = 64  # at most side by side
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
SETTINGS = re.compile(
    r"tokenizer.*|config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)"
    r"|merges\.txt|spiece\.model"
)
TENSORS = re.compile(r".*\.(safetensors|bin)")
BLOCK, BLOCKS, WHOLE = 2**16, 66, 2**23  # bytes of a block, blocks of a file, bytes of a small one


class BaseMissing(RuntimeError):
    """The base model is not there, or is another one than the adapter was trained on."""


class InputError(ValueError):
    """An input is not what the adapter's task needs."""


class Predictor:
    """An adapter on its base model.

    `base` is a folder or hub id that takes the place of the recipe's, before GREEN_TUNE_BASE;
    `device` is torch's name of one, or `auto` for a GPU where there is one. `generated` counts
    the tokens generated so far, end tokens included, and no padding.

    Raises:
        BaseMissing: the base model cannot be loaded, or is known to be another one.
        ValueError: the recipe is of a later format.
        FileNotFoundError: the folder holds no adapter in safetensors.
    """

    def __init__(self, adapter: Path, *, base: str = "", device: str = "auto") -> None:
        import torch

        self.recipe = _recipe(Path(adapter))
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(auto if device == "auto" else device)
        self._dtype = getattr(torch, DTYPES[self.recipe["precision"]])
        if self._dtype == torch.float16 and self._device.type == "cpu":
            self._dtype = torch.float32
        place, revision = _place(self.recipe["base"], base or os.environ.get(BASE, ""))
        with quiet():
            loaded, self.tokenizer = _load_base(place, revision, self._dtype)
            self.model = _adapted(loaded.to(self._device), Path(adapter), place)
        self._base = self.model.get_base_model()
        self.generated = 0

    def predict(
        self, inputs: Any, params: Any = None, *, on_done: Callable[[int], object] = int
    ) -> list[str]:
        """The predictions, in the order of the inputs; see `rows` for what these may be.

        `on_done` hears after each batch how many rows it had. MLflow hands over `params`, which
        have no meaning here.

        Raises:
            InputError: an input lacks a field, or does not fit into the model's context.
        """
        import torch

        parts = [_parts(self.recipe["template"], row) for row in rows(inputs, self.fields)]
        answered = self._weighed if self.recipe["quality"] == "labels" else self._generated
        found: dict[int, str] = {}
        with quiet(), torch.inference_mode(), self._precision():
            for answers in answered(parts):
                found |= answers
                on_done(len(answers))
        return [found[number] for number in range(len(parts))]

    @property
    def fields(self) -> list[str]:
        """What a row of input needs."""
        return list(self.recipe["fields"])

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """A block in which predictions are the base model's own."""
        with self.model.disable_adapter():
            yield

    def _precision(self) -> Any:
        """Computes as the training did: the adapter's own weights are in fp32."""
        import torch

        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)

    def _generated(self, parts: Sequence[Parts]) -> Iterator[dict[int, str]]:
        asked = self.recipe["max_seq_len"], self.recipe["max_new_tokens"]
        limit, new = generation_bounds(self._base.config, *asked)
        prompts = self._prompts(parts, limit, token_ids(self.tokenizer, [""])[0])
        with greedy(self._base, self.tokenizer, new) as config:

            def ask(batch: Sequence[Tokens]) -> list[Tokens]:
                return continued(self._base, batch, config)

            for answers in in_batches(prompts, ask, extra=new, tokens=TOKENS):
                self.generated += sum(map(len, answers.values()))
                texts = to_texts(self.tokenizer, list(answers.values()))
                yield dict(zip(answers, texts, strict=True))

    def _weighed(self, parts: Sequence[Parts]) -> Iterator[dict[int, str]]:
        names = self.recipe["labels"]
        labels = token_ids(self.tokenizer, names)
        longest = max(labels, key=len)
        limit = min(self.recipe["max_seq_len"], context(self._base.config))
        prompts = self._prompts(parts, limit, longest)
        ends = [[*label, self.tokenizer.eos_token_id] for label in labels]

        def ask(batch: Sequence[Tokens]) -> list[list[float]]:
            return log_likelihoods(self._base, batch, ends)

        for answers in in_batches(prompts, ask, extra=len(longest) + 1, tokens=TOKENS):
            yield {number: names[row.index(max(row))] for number, row in answers.items()}

    def _prompts(self, parts: Sequence[Parts], limit: int, after: Tokens) -> list[Tokens]:
        """Cut so that start token, prompt, `after` and end token fit into `limit` tokens."""
        first = self.tokenizer.bos_token_id
        start = [] if first is None else [first]
        room = limit - len(start) - len(after) - 1
        prompts = []
        whole = token_ids(self.tokenizer, ["".join(one) for one in parts])
        for number, (one, ids) in enumerate(zip(parts, whole, strict=True), 1):
            prompt = fitted(self.tokenizer, one, ids, room)
            if prompt is None:
                field = self.recipe["template"][1]
                raise InputError(
                    f"row {number} does not fit into {limit} tokens, even without its {field}"
                )
            prompts.append(start + prompt)
        return prompts


def _load_pyfunc(data_path: str, model_config: Mapping[str, Any] | None = None) -> Predictor:
    """MLflow's contract with a loader module; `model_config` may name the base model's place."""
    return Predictor(Path(data_path), base=(model_config or {}).get("base") or "")


def rows(inputs: Any, fields: Sequence[str]) -> list[dict[str, str]]:
    """Inputs of any kind as one mapping a row, with the fields and nothing else.

    A text (where there is one field) or a mapping, a list or array or series of them, a mapping of
    lists, a data frame. With one field, a data frame's only column may be called 0.

    Raises:
        InputError: a row lacks a field, or a field is no text; rows are counted from 1.
    """
    return [_row(number, one, fields) for number, one in enumerate(_records(inputs, fields), 1)]


def _records(inputs: Any, fields: Sequence[str]) -> Sequence[Any]:
    if hasattr(inputs, "columns"):
        names = [str(name) for name in inputs.columns]
        if not len(inputs) or (names == ["0"] and len(fields) == 1):
            return inputs.to_numpy().tolist()  # type: ignore[no-any-return]
        inputs = {name: inputs[name] for name in fields if name in names}
    plain = _plain(inputs)
    if isinstance(plain, Mapping):
        columns = {name: _plain(plain[name]) for name in fields if name in plain}
        if not columns or not all(isinstance(one, list | tuple) for one in columns.values()):
            return [plain]
        if len({len(one) for one in columns.values()}) > 1:
            raise InputError("the fields have unlike numbers of rows")
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return plain if isinstance(plain, list | tuple) else [plain]


def _row(number: int, given: Any, fields: Sequence[str]) -> dict[str, str]:
    one = given[0] if isinstance(given, list | tuple) and len(given) == 1 else given
    if isinstance(one, str) and len(fields) == 1:
        one = {fields[0]: one}
    for name in fields:
        if not isinstance(one, Mapping) or name not in one:
            raise InputError(f"row {number} has no {name!r}: each row needs {', '.join(fields)}")
        text = _plain(one[name])
        if not isinstance(text, str) or not text.strip() or re.search("[\ud800-\udfff]", text):
            raise InputError(f"row {number}: {name!r} is not a text, or empty")
    return {name: str(_plain(one[name])) for name in fields}


def _plain(values: Any) -> Any:
    """As Python's own lists and texts where these are numpy's or pandas'."""
    return values.tolist() if hasattr(values, "tolist") else values


def _recipe(adapter: Path) -> dict[str, Any]:
    if not (adapter / WEIGHTS).is_file():  # else peft would take a pickle
        raise FileNotFoundError(f"{adapter} holds no {WEIGHTS}")
    recipe: dict[str, Any] = json.loads((adapter / "recipe.json").read_text(encoding="utf-8"))
    if recipe["format"] != 1:
        raise ValueError(f"{adapter} was made by a newer green-tune: take its newest version")
    return recipe


def digest(folder: Path) -> str:
    """What identifies the base model in a folder: 32 hexadecimal digits.

    A SHA-256 over its config and tokenizer files, and of each file of weights the size and, from
    8 MiB on, 66 evenly spaced blocks of 64 KiB, the first and the last among them. So 14 GB are
    read in a fraction of a second, and weights that were trained further are seen; a change of a
    few weights between two blocks is not. Nor are other files, such as a README.
    """
    total = hashlib.sha256()
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        weights = bool(TENSORS.fullmatch(path.name))
        if not path.is_file() or not (weights or SETTINGS.fullmatch(path.name)):
            continue
        size = path.stat().st_size
        total.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for start, length in _looked_at(size) if weights else [(0, size)]:
                file.seek(start)
                total.update(file.read(length))
    return total.hexdigest()[:32]


def _looked_at(size: int) -> list[tuple[int, int]]:
    """Places and lengths of what is read of a file of weights."""
    if size < WHOLE:
        return [(0, size)]
    return [((size - BLOCK) * k // (BLOCKS - 1), BLOCK) for k in range(BLOCKS)]


def _place(base: Mapping[str, str], asked: str) -> tuple[str, str]:
    """The folder of the right base model, or its hub id and revision."""
    place = asked or base["place"]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "green-tune"
    built = [cache / Path(place).name] if base["kind"] == "built" and not asked else []
    for folder in (Path(place).expanduser(), *built):
        if folder.is_dir():
            _check_same(folder.resolve(), base)
            return str(folder), ""
    if base["kind"] == "hub" and place == base["place"]:
        return place, base["revision"]
    help = "; green-tune builds it on its first run" if base["kind"] == "built" else ""
    raise BaseMissing(
        f"the base model {base['name']} is not in {place}: name its folder in {BASE}" + help
    )


def _check_same(folder: Path, base: Mapping[str, str]) -> None:
    """Refuses a folder that is known to hold another base model, and says where nobody knows.

    The hub's own cache names its folders by revision.
    """
    if base["digest"]:
        same = digest(folder) == base["digest"]
    elif folder.parent.name == "snapshots":
        same = folder.name == base["revision"]
    else:
        name = f"{base['name']} at {base['revision']}"
        log.warning("%s is taken for %s, which cannot be checked", folder, name)
        same = True
    if not same:
        raise BaseMissing(
            f"{folder} holds another model or revision than the adapter was trained on "
            f"({base['name']}): name the right folder in {BASE}"
        )


def _load_base(place: str, revision: str, dtype: Any) -> tuple[Any, Any]:
    """The base model and its tokenizer, from files that hold no code."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    how: dict[str, Any] = {"trust_remote_code": False}
    how |= {"revision": revision} if revision else {}
    try:
        if not Path(place).is_dir():
            _ask_hub(place, revision or None)
        tokenizer = AutoTokenizer.from_pretrained(place, **how)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place, dtype=dtype, attn_implementation="sdpa", use_safetensors=True,
            output_loading_info=True, **how,
        )  # fmt: skip
    except Exception as error:  # broken folders fail in as many ways as there are file formats
        if is_out_of_memory(error):
            raise
        raise BaseMissing(
            f"the base model {place} cannot be loaded: {_line(error)}; a folder that holds it may "
            f"be named in {BASE}"
        ) from error
    base, report = loaded
    if missing := sorted(report["missing_keys"]):  # transformers fills them by chance
        raise BaseMissing(f"{place} lacks {len(missing)} weights, such as {missing[0]}")
    return base, tokenizer


def _ask_hub(place: str, revision: str | None) -> None:
    """Fails at once where the hub cannot be reached; transformers goes on asking for a minute."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(place, "config.json", revision=revision), str):
        HfApi().model_info(place, revision=revision, timeout=10)


def _adapted(base: Any, adapter: Path, place: str) -> Any:
    """The adapter on it; each of its weights must have its place there, and each place its weight.

    peft passes over those that have not.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # GPT-2's; peft sees it itself
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        try:
            where = str(base.device)
            model = PeftModel.from_pretrained(base, str(adapter), torch_device=where)
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise BaseMissing(f"the adapter does not fit on {place}: {_line(error)}") from error
    with safe_open(adapter / WEIGHTS, framework="pt") as file:
        # By default peft looks for the base's config where it was trained, and asks the hub.
        named = get_peft_model_state_dict(model, save_embedding_layers=False)
        apart = set(file.keys()) ^ set(named)
    if apart:
        raise BaseMissing(
            f"the adapter does not fit on {place}: one of them lacks {min(apart)} and "
            f"{len(apart) - 1} more"
        )
    return model.eval()


def _line(error: BaseException) -> str:
    """The first line that says something; torch's own only announces the next."""
    lines = [line.strip() for line in str(error).strip().split("\n")]
    return " ".join(lines[: 1 + lines[0].endswith(":")])


@contextmanager
def quiet() -> Iterator[None]:
    """A block in which transformers reports errors alone."""
    from transformers.utils import logging as chatter

    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity_error()  # type: ignore[no-untyped-call]
    chatter.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()  # type: ignore[no-untyped-call]


def _parts(template: Sequence[str], row: Mapping[str, str]) -> Parts:
    """The prompt of a row; a recipe comes from elsewhere, so only names of fields are filled in."""

    def filled(text: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda name: row.get(name[1], name[0]), text)

    head, body, tail = template
    return filled(head), row[body].strip(), filled(tail)


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[Tokens]:
    """Each text in tokens, without start and end; a mark that stands in a text is only text."""
    if not texts:
        return []
    made = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
    return made["input_ids"]  # type: ignore[no-any-return]


def fitted(tokenizer: Any, parts: Parts, whole: Tokens, room: int) -> Tokens | None:
    """A prompt in at most `room` tokens: `whole` if that fits, else its long text is cut.

    As long as halving finds; None where head and tail alone do not fit.
    """
    if len(whole) <= room:
        return whole
    head, body, tail = parts
    found = None
    low, high = 0, len(body)
    while low <= high:
        kept = (low + high) // 2
        (ids,) = token_ids(tokenizer, [head + body[:kept] + tail])
        if len(ids) <= room:
            found, low = ids, kept + 1
        else:
            high = kept - 1
    return found


def context(config: Any) -> int:
    """The tokens that a base model was built for; where it does not say, no bound."""
    return getattr(config, "max_position_embeddings", None) or sys.maxsize


def generation_bounds(config: Any, max_seq_len: int, max_new_tokens: int) -> tuple[int, int]:
    """Tokens of a prompt with its end token, and tokens that may follow the prompt.

    A prompt leaves room for all that may be generated, whatever the right answer's length.
    """
    new = min(max_new_tokens, context(config) // 2)
    return min(max_seq_len, context(config) - new + 1), new


def in_batches(
    prompts: Sequence[Tokens], ask: Callable[[Sequence[Tokens]], Sequence[T]], *, extra: int,
    tokens: int,
) -> Iterator[dict[int, T]]:  # fmt: skip
    """What `ask` makes of the prompts, by their numbers, batch after batch, the longest first.

    As many side by side as `tokens` allow, with `extra` for each beyond its prompt; where the
    memory does not, half as many.
    """
    left = sorted(range(len(prompts)), key=lambda number: len(prompts[number]), reverse=True)
    while left:
        length = len(prompts[left[0]]) + extra
        batch = left[: min(max(1, tokens // length), ROWS)]
        answers = _attempt(ask, [prompts[number] for number in batch])
        if answers is None:
            tokens = len(batch) * length // 2
            continue
        yield dict(zip(batch, answers, strict=True))
        left = left[len(batch) :]


def _attempt(ask: Callable[[Sequence[Tokens]], T], batch: Sequence[Tokens]) -> T | None:
    """The answers; None where so many at once do not fit, and fewer may."""
    import torch

    try:
        return ask(batch)
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(batch) == 1:
            raise
    torch.cuda.empty_cache()
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """True for a GPU's, and for a CPU's, which has no type of its own."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


@contextmanager
def greedy(base: Any, tokenizer: Any, new: int) -> Iterator[Any]:
    """What `generate` is to do; while it lasts, the base model has no other wishes of its own."""
    from transformers import GenerationConfig

    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=new,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end,
        pad_token_id=end if pad is None else pad,
    )
    own, base.generation_config = base.generation_config, config
    try:
        yield config
    finally:
        base.generation_config = own


def continued(base: Any, prompts: Sequence[Tokens], config: Any) -> list[Tokens]:
    """What each of the prompts goes on with, up to its end token, which is the last one."""
    ids, real = _padded(prompts, config.pad_token_id, base.device)
    found = base.generate(input_ids=ids, attention_mask=real, generation_config=config)
    made, end = found[:, ids.shape[1] :].tolist(), config.eos_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in made]


def to_texts(tokenizer: Any, answers: Sequence[Tokens]) -> list[str]:
    """Tokens as texts, without special ones and without white space around them."""
    texts = tokenizer.batch_decode(
        list(answers), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return [text.strip() for text in texts]


def log_likelihoods(
    base: Any, prompts: Sequence[Tokens], labels: Sequence[Tokens]
) -> list[list[float]]:
    """For each prompt that of each label, in nats: the sum over its tokens.

    A prompt is computed once; what is remembered of it serves one label after the other.
    """
    import torch
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=base.config)
    cache.activate_past_recording()  # a sliding window would forget what a label pushes out
    ids, real = _padded(prompts, 0, base.device)
    first = _logs(base, ids, real, cache, keep=1)[:, 0]
    cache.crop(0)
    sums = [first[:, label[0]] for label in labels]
    for number, label in enumerate(labels):
        if rest := label[1:]:
            ids = torch.tensor([label[:-1]] * len(prompts), device=base.device)
            logs = _logs(base, ids, torch.cat([real, torch.ones_like(ids)], 1), cache)
            cache.crop(-len(rest))
            sums[number] = sums[number] + logs[:, range(len(rest)), rest].sum(1)
    return torch.stack(sums, 1).tolist()


def _logs(base: Any, ids: Any, real: Any, cache: Any, *, keep: int = 0) -> Any:
    """Logarithms of what follows each token, (prompts, tokens, vocabulary); of the last `keep`."""
    at = (real.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    how = {"position_ids": at, "past_key_values": cache, "use_cache": True}
    logits = base(input_ids=ids, attention_mask=real, logits_to_keep=keep, **how).logits
    return logits[:, -keep:].float().log_softmax(-1)


def _padded(prompts: Sequence[Tokens], pad: int, device: Any) -> tuple[Any, Any]:
    """Tokens and which of them are real, (prompts, longest); filled up on the left."""
    import torch

    width = max(map(len, prompts))
    ids = [[pad] * (width - len(one)) + one for one in prompts]
    real = [[0] * (width - len(one)) + [1] * len(one) for one in prompts]
    return torch.tensor(ids, device=device), torch.tensor(real, device=device)
