"""The file that travels: it predicts as the training process does, alone, and on no other base."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
import transformers
from huggingface_hub import constants
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_attention import FAMILIES, adapted, built
from test_quality import LABEL_ROWS, greedy
from test_quality import folder as data_folder
from transformers import AutoModelForCausalLM

from green_tune import job as jobs
from green_tune import predictor, quality, samples, tasks, tiny, training
from green_tune.config import TrainConfig
from green_tune.predictor import BaseMissing, InputError, Predictor
from green_tune.training import FineTuner

SMALL: dict[str, Any] = {"gpu": "cpu", "max_train_examples": 96, "max_eval_examples": 12,
                         "evals": 2, "learning_rate": 4e-3, "batch_size": 4,
                         "epochs": 10}  # fmt: skip
ROWS = 7
COMMIT = "c0ffee" * 6 + "1234"
Recipe = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """An adapter in a folder, and what its training process predicts with it and without."""

    folder: Path
    rows: list[dict[str, str]]
    before: list[str]
    after: list[str]


def predicted(tuner: FineTuner, rows: Sequence[dict[str, Any]]) -> list[str]:
    """By the training process itself."""
    examples = [tuner.job.task.example(row) for row in rows]
    ask = quality._weighed if tuner.job.task.quality == "labels" else quality._generated
    with quality._inference(tuner):
        return list(ask(tuner, examples).values())


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Half the time of two on models this small: other tests have the other core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """A task's adapter, trained once."""
    made: dict[str, Trained] = {}
    labels = data_folder(tmp_path_factory.mktemp("data") / "labels", LABEL_ROWS)
    learnable = {"sentiment": {"data": str(labels), "epochs": 20}}

    def train(task: str, **options: Any) -> Trained:
        key = f"{task}{options}"
        if key not in made:
            asked = SMALL | learnable.get(task, {}) | options
            tuner = training.load(jobs.prepare(TrainConfig(task=task, **asked)))
            rows = LABEL_ROWS if task == "sentiment" else samples.rows(task, "validation")
            rows = rows[:ROWS]
            before = predicted(tuner, rows)
            tuner.fit()
            folder = tmp_path_factory.mktemp(task)
            tuner.save(folder)
            inputs = [{name: row[name] for name in tuner.job.task.fields[:-1]} for row in rows]
            after = predicted(tuner, rows)
            assert after != before
            assert len(set(after)) > 1 or options  # else to be the same says little
            made[key] = Trained(folder=folder, rows=inputs, before=before, after=after)
        return made[key]

    return train


@pytest.fixture
def travelled(trained: Callable[..., Trained], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a task's adapter, whose recipe names its base in another way."""

    def copied(task: str = "sentiment", **base: str) -> Path:
        folder = tmp_path / "adapter"
        shutil.copytree(trained(task).folder, folder, dirs_exist_ok=True)
        change(folder, lambda asked: asked["base"].update(base))
        return folder

    return copied


def change(folder: Path, how: Callable[[Recipe], object]) -> None:
    path = folder / "recipe.json"
    asked = json.loads(path.read_text())
    how(asked)
    path.write_text(json.dumps(asked))


def base_folder(target: Path) -> Path:
    return Path(shutil.copytree(tiny.folder(), target))


@pytest.mark.parametrize("task", list(tasks.TASKS))
@pytest.mark.parametrize(
    "kind", [{}, {"max_seq_len": 64}, {"use_dora": True, "learning_rate": 3e-3}]
)
def test_predictions_are_those_of_the_training_process(
    trained: Callable[..., Trained], task: str, kind: dict[str, Any]
) -> None:
    one = trained(task, **kind)
    found = Predictor(one.folder)
    assert found.predict(one.rows) == one.after
    with found.without_adapter():
        assert found.predict(one.rows) == one.before
    assert found.predict(one.rows) == one.after


def test_predictions_in_16_bits_are_those_of_the_training_process(
    trained: Callable[..., Trained],
) -> None:
    one = trained("qa", precision="bf16")
    assert json.loads((one.folder / "recipe.json").read_text())["precision"] == "bf16"
    assert Predictor(one.folder).predict(one.rows) == one.after


def test_an_adapter_trained_in_fp16_is_used_in_fp32_on_a_cpu(
    travelled: Callable[..., Path], trained: Callable[..., Trained]
) -> None:
    folder = travelled("qa")
    change(folder, lambda asked: asked.update(precision="fp16"))
    found = Predictor(folder, device="cpu")
    assert {weight.dtype for weight in found._base.parameters()} == {torch.float32}
    assert found.predict(trained("qa").rows) == trained("qa").after


ALONE = """
import json, sys, warnings
warnings.simplefilter("error")
sys.modules["green_tune"] = None
sys.path.insert(0, sys.argv[1])
import shipped
assert not {"torch", "transformers", "peft", "pandas"} & set(sys.modules)
rows = json.loads(sys.argv[3])
print(json.dumps(shipped.Predictor(sys.argv[2]).predict(rows)))
"""
SERVED = """
import json, sys
sys.modules["green_tune"] = None
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
rows = json.loads(sys.argv[2])
texts = [row["text"] for row in rows]
found = [model.predict(rows), model.predict(texts), model.predict(pandas.DataFrame(rows)),
         model.predict({"text": texts}), model.predict(pandas.DataFrame(texts)),
         model.predict(rows[0])]
elsewhere = mlflow.pyfunc.load_model(sys.argv[1], model_config={"base": sys.argv[3]})
print(json.dumps([*found, elsewhere.predict(rows)]))
"""


def run_alone(code: str, *arguments: str) -> Any:
    """In a process that has none of our folders on its path."""
    setting = os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, *arguments],
        capture_output=True, text=True, timeout=300, env=setting,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_file_predicts_alone_under_another_name_where_green_tune_is_not(
    trained: Callable[..., Trained], tmp_path: Path
) -> None:
    shutil.copy(predictor.__file__, tmp_path / "shipped.py")
    for task in ("sentiment", "qa"):
        one = trained(task)
        given = (str(tmp_path), str(one.folder), json.dumps(one.rows))
        assert run_alone(ALONE, *given) == one.after


def test_mlflow_serves_it_where_green_tune_is_not(
    travelled: Callable[..., Path], trained: Callable[..., Trained], tmp_path: Path
) -> None:
    one = trained("sentiment")
    travelled()
    (tmp_path / "code").mkdir()
    shutil.copy(predictor.__file__, tmp_path / "code" / "green_tune_predictor.py")
    flavor = {"loader_module": "green_tune_predictor", "code": "code", "data": "adapter",
              "model_config": {"base": ""}}  # fmt: skip
    (tmp_path / "MLmodel").write_text(json.dumps({"flavors": {"python_function": flavor}}))
    other = base_folder(tmp_path / "elsewhere")
    *found, single, elsewhere = run_alone(SERVED, str(tmp_path), json.dumps(one.rows), str(other))
    assert found == [one.after] * 5
    assert single == one.after[:1]
    assert elsewhere == one.after


def test_logits_of_plain_peft_are_the_same_to_the_bit_after_the_trip(
    trained: Callable[..., Trained], travelled: Callable[..., Path]
) -> None:
    ids = torch.arange(3, 80)[None]
    logits = []
    for folder in (trained("sentiment").folder, travelled()):
        base = AutoModelForCausalLM.from_pretrained(tiny.folder())
        with torch.inference_mode():
            logits.append(PeftModel.from_pretrained(base, folder).eval()(ids).logits)
    assert torch.equal(*logits)
    with torch.inference_mode():
        plain = AutoModelForCausalLM.from_pretrained(tiny.folder())(ids).logits
    assert not torch.equal(plain, logits[0])


@pytest.mark.parametrize(("task", "some"), [("qa", 1000), ("sentiment", 200)])
def test_batches_do_not_change_predictions_and_say_how_many_are_done(
    trained: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch, task: str, some: int
) -> None:
    one = trained(task)
    found = Predictor(one.folder)
    for tokens, most in ((1, 1), (some, ROWS - 1), (10**6, ROWS)):
        monkeypatch.setattr(predictor, "TOKENS", tokens)
        done: list[int] = []
        assert found.predict(one.rows, on_done=done.append) == one.after
        assert sum(done) == ROWS
        assert max(done) <= most
        assert (len(done) == ROWS) == (tokens == 1)


def test_fewer_are_computed_at_once_where_the_memory_is_small(
    trained: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, sizes, most = trained("sentiment"), [], 2
    whole = predictor.log_likelihoods

    def limited(base: Any, prompts: Sequence[list[int]], labels: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return whole(base, prompts, labels)

    monkeypatch.setattr(predictor, "log_likelihoods", limited)
    found = Predictor(one.folder)
    assert found.predict(one.rows) == one.after
    assert sizes[0] == ROWS
    most = 0
    with pytest.raises(RuntimeError, match="allocate memory"):
        found.predict(one.rows)


def test_generated_tokens_are_counted_to_the_end_token_and_not_beyond(
    trained: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trained("qa")
    found = Predictor(one.folder)
    made: list[list[int]] = []
    whole = predictor.continued

    def listened(*asked: Any) -> list[list[int]]:
        made.extend(whole(*asked))
        return made[-len(asked[1]) :]

    monkeypatch.setattr(predictor, "continued", listened)
    assert found.generated == 0
    found.predict(one.rows)
    end = found.tokenizer.eos_token_id
    bound = json.loads((one.folder / "recipe.json").read_text())["max_new_tokens"]
    assert len({len(row) for row in made}) > 1
    assert all(end not in row[:-1] and (row[-1] == end or len(row) == bound) for row in made)
    assert found.generated == sum(map(len, made))
    labels = Predictor(trained("sentiment").folder)
    labels.predict(trained("sentiment").rows)
    assert labels.generated == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_labels_are_as_likely_as_each_alone(family: str) -> None:
    """Mistral's window of 24 tokens is shorter than most of the prompts."""
    chance = random.Random(0)

    def words(*lengths: int) -> list[list[int]]:
        return [[chance.randrange(3, 512) for _ in range(length)] for length in lengths]

    base = adapted(FAMILIES[family]).eval().get_base_model()
    base.set_attn_implementation("sdpa")
    labels = words(1, 2, 5, 3, 10)
    for prompts in (words(5, 40, 17, 23), words(60, 61, 3), words(24, 24), words(1)):
        with torch.inference_mode():
            found = predictor.log_likelihoods(base, prompts, labels)
            alone = [[alone_likelihood(base, prompt, one) for one in labels] for prompt in prompts]
        assert np.array(found) == pytest.approx(np.array(alone), abs=1e-4)


def alone_likelihood(base: Any, prompt: list[int], label: list[int]) -> float:
    """One sequence, nothing remembered."""
    ids = torch.tensor([prompt + label])
    logs = base(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    return float(logs[torch.arange(len(label)), torch.tensor(label)].sum())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_texts_of_other_families_are_those_of_one_prompt_at_a_time(
    travelled: Callable[..., Path], trained: Callable[..., Trained], tmp_path: Path, family: str
) -> None:
    kind = FAMILIES[family]
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = type(kind)(**(kind.to_dict() | ends))
    model, place = adapted(config), tmp_path / "base"
    torch.manual_seed(0)  # as `adapted` does
    built(config).save_pretrained(place)
    letters = tiny.tokenizer(["Context: Question: Answer: Who Which the "] * 9, 300)
    letters.save_pretrained(place)
    folder = travelled("qa", place=str(place), kind="folder", digest=predictor.digest(place))
    model.save_pretrained(folder)
    change(folder, lambda asked: asked.update(max_new_tokens=20, max_seq_len=108))
    found, rows = Predictor(folder), trained("qa").rows
    template = found.recipe["template"]
    prompts = found._prompts([predictor._parts(template, row) for row in rows], 108, [])
    alone = [greedy(model.eval(), prompt, 2, 20) for prompt in prompts]
    assert found.predict(rows) == predictor.to_texts(letters, alone)
    assert found.generated == sum(map(len, alone))


def test_an_input_longer_than_the_context_is_cut_and_one_whose_question_is_too_long_is_named(
    trained: Callable[..., Trained], travelled: Callable[..., Path], tmp_path: Path
) -> None:
    one = trained("qa")
    long = [{**row, "context": row["context"] + " and so on" * 3000} for row in one.rows[:2]]
    base = base_folder(tmp_path / "short")
    config = json.loads((base / "config.json").read_text()) | {"max_position_embeddings": 128}
    (base / "config.json").write_text(json.dumps(config))
    folder = travelled("qa", place=str(base), kind="folder", digest=predictor.digest(base))
    tuner = training.load(jobs.prepare(TrainConfig(task="qa", model=str(base), **SMALL)))
    answered = [{**row, "answers": [{"text": "x"}]} for row in long]
    short = Predictor(folder)
    with short.without_adapter():
        assert short.predict(long) == predicted(tuner, answered)
    assert len(Predictor(one.folder).predict(long)) == 2
    hopeless = {"context": "Here.", "question": "why " * 400}
    with pytest.raises(InputError, match=r"row 2 does not fit into 97 tokens.*its context$"):
        short.predict([long[0], hopeless])


def test_transformers_is_as_talkative_afterwards_as_it_was(
    trained: Callable[..., Trained], capfd: pytest.CaptureFixture[str]
) -> None:
    chatter: Any = transformers.logging
    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity_info()
    chatter.enable_progress_bar()
    try:
        one = trained("sentiment")
        capfd.readouterr()
        Predictor(one.folder).predict(one.rows)
        assert capfd.readouterr() == ("", "")
        assert chatter.get_verbosity() == chatter.INFO
        assert chatter.is_progress_bar_enabled()
    finally:
        chatter.set_verbosity(level)
        (chatter.enable_progress_bar if bars else chatter.disable_progress_bar)()


TEXTS = ["fine", "poor"]
WANTED = [{"text": "fine"}, {"text": "poor"}]


@pytest.mark.parametrize(
    "inputs",
    [
        TEXTS,
        tuple(TEXTS),
        WANTED,
        [{"text": "fine", "label": 1}, {"label": None, "text": "poor"}],
        {"text": TEXTS},
        {"text": np.array(TEXTS), "other": [1]},
        {"text": pd.Series(TEXTS)},
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        np.array([["fine"], ["poor"]]),
        pd.Series(TEXTS, index=[5, 3]),
        pd.DataFrame({"text": TEXTS, "label": [0, 1]}),
        pd.DataFrame({"text": TEXTS}, index=[5, 3], dtype="string"),
        pd.DataFrame(TEXTS),
        pd.DataFrame({"0": TEXTS}),
    ],
)
def test_inputs_of_every_kind_are_rows(inputs: Any) -> None:
    found = predictor.rows(inputs, ["text"])
    assert found == WANTED
    assert {type(row["text"]) for row in found} == {str}


@pytest.mark.parametrize(
    "inputs",
    [
        [{"context": "a", "question": "b", "id": 7}],
        {"context": "a", "question": "b"},
        {"context": np.array("a"), "question": np.array("b")},
        {"context": ["a"], "question": ("b",)},
        pd.DataFrame({"question": ["b"], "id": [7], "context": ["a"]}),
    ],
)
def test_rows_may_have_several_fields(inputs: Any) -> None:
    assert predictor.rows(inputs, ["context", "question"]) == [{"context": "a", "question": "b"}]


@pytest.mark.parametrize("inputs", ["fine", {"text": "fine"}, np.array("fine")])
def test_one_input_is_one_row(inputs: Any) -> None:
    assert predictor.rows(inputs, ["text"]) == [{"text": "fine"}]


@pytest.mark.parametrize("inputs", [[], (), {"text": []}, np.array([]), pd.DataFrame({"text": []}),
                                    pd.DataFrame([]), pd.Series([], dtype=object)])  # fmt: skip
def test_no_inputs_are_no_predictions(trained: Callable[..., Trained], inputs: Any) -> None:
    assert predictor.rows(inputs, ["text"]) == []
    assert Predictor(trained("sentiment").folder).predict(inputs) == []


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (["a", "b"], r"^row 1 has no 'context': each row needs context, question$"),
        ("a", r"^row 1 has no 'context': each row needs context, question$"),
        ([{"context": "a", "question": "b"}, {"context": "a"}], r"^row 2 has no 'question'"),
        ({"context": ["a", "b"], "question": ["c"]}, "unlike numbers of rows"),
        ({"context": ["a"]}, r"^row 1 has no 'question'"),
        (pd.DataFrame({"context": ["a"]}), r"^row 1 has no 'question'"),
        (pd.DataFrame([["a"]]), r"^row 1 has no 'context'"),
        ([{"context": "a", "question": 7}], r"^row 1: 'question' is not a text, or empty$"),
        ([{"context": "a", "question": float("nan")}], r"^row 1: 'question' is not a text"),
        ([{"context": " \n", "question": "b"}], r"^row 1: 'context' is not a text, or empty$"),
        ([{"context": "\ud83d", "question": "b"}], r"^row 1: 'context' is not a text"),
        ({}, r"^row 1 has no 'context'"),
        (None, r"^row 1 has no 'context'"),
        ([None], r"^row 1 has no 'context'"),
        (3, r"^row 1 has no 'context'"),
        (b"bytes", r"^row 1 has no 'context'"),
    ],
)
def test_a_row_that_lacks_something_is_named(inputs: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        predictor.rows(inputs, ["context", "question"])


def test_two_columns_of_one_name_are_refused() -> None:
    frame = pd.DataFrame([["a", "b"]], columns=["text", "text"])
    with pytest.raises(InputError, match="row 1: 'text' is not a text"):
        predictor.rows(frame, ["text"])


def test_a_field_in_braces_is_filled_in_and_nothing_else_of_a_template_is_computed() -> None:
    row = {"context": "{question}", "question": "{context.__class__}"}
    parts = predictor._parts(["{0} {question:>9}", "context", "{question} {other}"], row)
    assert parts == ("{0} {question:>9}", "{question}", "{context.__class__} {other}")


def test_templates_of_all_tasks_are_filled_in_as_for_the_training() -> None:
    for task in tasks.TASKS.values():
        for row in samples.rows(task.name, "train")[:20]:
            example = task.example(row)
            found = predictor._parts(task.template, row)
            assert found == (example.head, example.body, example.tail)


def test_a_base_that_is_missing_is_one_line_that_says_what_to_do(
    travelled: Callable[..., Path], tmp_path: Path
) -> None:
    folder = travelled(place=str(tmp_path / "gone"))
    with pytest.raises(BaseMissing) as raised:
        Predictor(folder)
    said = str(raised.value)
    assert "\n" not in said
    assert all(part in said for part in ("tiny", str(tmp_path / "gone"), predictor.BASE))
    assert "green-tune builds it on its first run" in said
    with pytest.raises(BaseMissing) as raised:
        Predictor(travelled(place=str(tmp_path / "gone"), kind="folder"))
    assert "first run" not in str(raised.value)


def test_a_base_is_found_where_the_argument_or_the_variable_says_or_where_it_was_built(
    travelled: Callable[..., Path],
    trained: Callable[..., Trained],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = trained("sentiment")
    gone = travelled(place=str(tmp_path / "gone"), kind="folder")
    there = str(base_folder(tmp_path / "there"))
    assert Predictor(gone, base=there).predict(one.rows) == one.after
    monkeypatch.setenv(predictor.BASE, there)
    assert Predictor(gone).predict(one.rows) == one.after
    monkeypatch.setenv(predictor.BASE, str(tmp_path / "nowhere"))
    assert Predictor(gone, base=there).predict(one.rows) == one.after
    with pytest.raises(BaseMissing, match="nowhere"):
        Predictor(gone)
    monkeypatch.delenv(predictor.BASE)
    built = travelled(place=f"/home/another/.cache/green-tune/{tiny.folder().name}", kind="built")
    assert Predictor(built).predict(one.rows) == one.after


def test_a_base_with_one_weight_changed_is_refused(
    travelled: Callable[..., Path], tmp_path: Path
) -> None:
    base = base_folder(tmp_path / "base")
    Predictor(travelled(), base=str(base))
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseMissing, match="another model or revision than the adapter was trained"):
        Predictor(travelled(), base=str(base))


def test_a_base_that_lacks_weights_or_cannot_be_read_is_refused(
    travelled: Callable[..., Path], tmp_path: Path
) -> None:
    base = base_folder(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseMissing, match=r"base lacks 1 weights, such as lm_head\.weight$"):
        Predictor(travelled(place=str(base), digest=predictor.digest(base)))
    (base / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(BaseMissing, match=r"cannot be loaded: .*GREEN_TUNE_BASE"):
        Predictor(travelled(place=str(base), digest=predictor.digest(base)))


def test_an_adapter_that_does_not_fit_on_the_base_is_refused(
    travelled: Callable[..., Path], tmp_path: Path
) -> None:
    wide = tiny.folder("tiny-wide")
    with pytest.raises(BaseMissing, match=r"does not fit on .*tiny-wide"):
        Predictor(travelled(place=str(wide), digest=predictor.digest(wide)))
    base = base_folder(tmp_path / "lower")
    config = json.loads((base / "config.json").read_text()) | {"num_hidden_layers": 1}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        BaseMissing, match=r"does not fit on .*lower: one of them lacks .*layers\.1"
    ):
        Predictor(travelled(place=str(base), digest=predictor.digest(base)))
    folder = travelled(place=str(tiny.folder()), digest=predictor.digest(tiny.folder()))
    weights = load_file(folder / "adapter_model.safetensors")
    weights.popitem()
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseMissing, match=r"does not fit on .* lacks base_model\.model\."):
        Predictor(folder)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that is not there, and nothing in its cache."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def hub(folder: Callable[..., Path]) -> Path:
    return folder(kind="hub", place="owner/name", revision=COMMIT, digest="")


@pytest.mark.usefixtures("offline")
def test_a_hub_that_cannot_be_reached_is_one_line(travelled: Callable[..., Path]) -> None:
    with pytest.raises(BaseMissing) as raised:
        Predictor(hub(travelled))
    said = str(raised.value)
    assert said.startswith("the base model owner/name cannot be loaded: ")
    assert predictor.BASE in said
    assert "\n" not in said


def test_a_base_of_the_hub_is_asked_for_at_its_revision(
    travelled: Callable[..., Path], trained: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def listen(place: str, revision: str, dtype: torch.dtype) -> Any:
        asked.append((place, revision))
        return load(str(tiny.folder()), "", dtype)

    load = predictor._load_base
    monkeypatch.setattr(predictor, "_load_base", listen)
    folder, one = hub(travelled), trained("sentiment")
    for base in ("", "owner/name"):
        assert Predictor(folder, base=base).predict(one.rows) == one.after
    assert asked == [("owner/name", COMMIT)] * 2
    for adapter in (folder, trained("sentiment").folder):
        with pytest.raises(BaseMissing, match="is not in owner/other: name its folder"):
            Predictor(adapter, base="owner/other")


def test_a_base_of_the_hub_at_another_revision_is_refused(
    travelled: Callable[..., Path],
    trained: Callable[..., Trained],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, folder = trained("sentiment"), hub(travelled)
    right = base_folder(tmp_path / "models--owner--name" / "snapshots" / COMMIT)
    other = base_folder(right.parent / ("beef" * 10))
    assert Predictor(folder, base=str(right)).predict(one.rows) == one.after
    with pytest.raises(BaseMissing, match="another model or revision"):
        Predictor(folder, base=str(other))
    assert caplog.messages == []
    copied = base_folder(tmp_path / "copied")
    assert Predictor(folder, base=str(copied)).predict(one.rows) == one.after
    (said,) = caplog.messages
    assert all(part in said for part in (str(copied), COMMIT, "cannot be checked"))


def test_an_adapter_without_safetensors_is_refused_even_with_a_pickle(
    travelled: Callable[..., Path],
) -> None:
    folder = travelled()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_model\.safetensors"):
        Predictor(folder)


def test_a_recipe_of_a_later_format_is_refused(travelled: Callable[..., Path]) -> None:
    folder = travelled()
    change(folder, lambda asked: asked.update(format=2))
    with pytest.raises(ValueError, match="newer green-tune"):
        Predictor(folder)


def test_a_digest_sees_config_tokenizer_and_weights_and_no_other_file(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    whole = predictor.digest(base)
    assert predictor.digest(tiny.folder()) == whole
    assert len(whole) == 32
    (base / "README.md").write_text("read me")
    (base / ".git").mkdir()
    (base / "tokenizer").mkdir()
    assert predictor.digest(base) == whole
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        path = base / name
        kept = path.read_bytes()
        for other in (kept + b" ", kept[:-1] + bytes([kept[-1] ^ 1]), kept[:-1]):
            path.write_bytes(other)
            assert predictor.digest(base) != whole
        path.write_bytes(kept)
    assert predictor.digest(base) == whole
    (base / "model.safetensors").rename(base / "other.safetensors")
    assert predictor.digest(base) != whole


def test_a_digest_of_large_weights_reads_little_and_sees_both_ends_and_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, size = tmp_path / "model.safetensors", 2**34
    with weights.open("wb") as file:
        file.truncate(size)  # a hole: no space is taken
    whole = predictor.digest(tmp_path)
    assert sum(length for _, length in predictor._looked_at(size)) < 2**23

    def changed(at: int) -> str:
        with weights.open("r+b") as file:
            file.seek(at)
            file.write(b"x")
        found = predictor.digest(tmp_path)
        with weights.open("r+b") as file:
            file.seek(at)
            file.write(b"\0")
        return found

    for at in (0, predictor.BLOCK - 1, size - predictor.BLOCK, size - 1):
        assert changed(at) != whole
    step = (size - predictor.BLOCK) // (predictor.BLOCKS - 1)
    assert changed(7 * step + 100) != whole
    assert changed(7 * step - 10**6) == whole  # between two blocks, as its docstring says
