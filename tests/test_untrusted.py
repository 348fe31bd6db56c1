"""Code that comes with a base model, with data or with a checkpoint is never run.

Each trap leaves a file where it is sprung; the first test springs them all.
"""

import importlib.util
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2.exceptions import SecurityError

from green_tune import data, loading, models, predictor, samples, tasks, tiny, training
from green_tune.errors import ModelError
from green_tune.job import Job

MakeJob = Callable[..., Job]
CODE = """
from pathlib import Path
Path({proof!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig): model_type = "trap"
class Model(LlamaForCausalLM): config_class = Config
class Tokenizer(PreTrainedTokenizerFast): pass
def generate(model, **options): Path({proof!r}).touch()
"""
MAPPED = {"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"}
TEMPLATE = "{{{{ cycler.__init__.__globals__.os.system('touch {proof}') }}}}"


class Trap:
    """A value that touches a file when it is read from a pickle."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """A file that is there once a trap was sprung."""
    return tmp_path / "sprung"


@pytest.fixture
def base(tmp_path: Path, proof: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`tiny` with code of its own, and with every variable set that asks to trust some."""
    for name in ("TRUST_REMOTE_CODE", "HF_TRUST_REMOTE_CODE", "HF_DATASETS_TRUST_REMOTE_CODE"):
        monkeypatch.setenv(name, "1")
    folder = Path(shutil.copytree(tiny.folder(), tmp_path / "base"))
    code = CODE.format(proof=str(proof))
    (folder / "trap.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    change(folder / "config.json", auto_map=MAPPED, trust_remote_code=True)
    change(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": [None, "trap.Tokenizer"]},
        trust_remote_code=True,
        chat_template=TEMPLATE.format(proof=proof),
    )
    return folder


def change(path: Path, **more: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def test_the_traps_are_real(base: Path, proof: Path) -> None:
    spec = importlib.util.spec_from_file_location("trap", base / "trap.py")
    assert spec
    assert spec.loader
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert proof.exists()
    proof.unlink()
    pickle.loads(pickle.dumps(Trap(proof)))
    assert proof.exists()


def test_code_beside_a_known_base_model_is_not_run(
    base: Path, proof: Path, make_job: MakeJob
) -> None:
    ours = loading.Base(make_job(model=str(base))).model
    assert type(ours).__module__.startswith("transformers.models.llama")
    loaded, _ = predictor._load_base(str(base), "", torch.float32)
    loaded.generate(torch.tensor([[1, 50]]), max_new_tokens=1)
    assert not proof.exists()


def test_a_base_model_that_is_nothing_but_its_own_code_is_refused(
    base: Path, proof: Path, make_job: MakeJob
) -> None:
    change(base / "config.json", model_type="trap", architectures=["Model"])
    with pytest.raises(ModelError) as caught:
        training.load(make_job(model=str(base), max_train_examples=8))
    assert "\n" not in str(caught.value)
    with pytest.raises(predictor.BaseMissing):
        predictor._load_base(str(base), "", torch.float32)
    assert not proof.exists()


def test_weights_in_a_pickle_are_not_read(base: Path, proof: Path, make_job: MakeJob) -> None:
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(proof)))
    with pytest.raises(ModelError, match="safetensors"):
        training.load(make_job(model=str(base), max_train_examples=8))
    with pytest.raises(predictor.BaseMissing):
        predictor._load_base(str(base), "", torch.float32)
    assert not proof.exists()


def test_a_chat_template_reaches_nothing(base: Path, proof: Path) -> None:
    """We render none; whoever does has transformers' sandbox around it."""
    tokenizer = loading.open_tokenizer(models.resolve(str(base)), "")
    assert tokenizer.chat_template
    with pytest.raises(SecurityError):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert not proof.exists()


def test_a_checkpoint_holds_values_and_no_code(proof: Path) -> None:
    state = training.to_bytes({"step": 1, "weights": torch.zeros(2)})
    assert training.from_bytes(state)["step"] == 1
    with pytest.raises(pickle.UnpicklingError):
        training.from_bytes(training.to_bytes({"step": Trap(proof)}))
    assert not proof.exists()


def test_a_script_among_the_data_is_not_run(tmp_path: Path, proof: Path) -> None:
    folder = tmp_path / "reviews"
    folder.mkdir()
    for name in ("reviews", "train", "__init__"):
        (folder / f"{name}.py").write_text(CODE.format(proof=str(proof)))
    for split in data.SPLITS:
        rows = samples.rows("sentiment", split)[:16]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    assert len(data.load(tasks.resolve("sentiment"), str(folder)).train) == 16
    assert not proof.exists()
