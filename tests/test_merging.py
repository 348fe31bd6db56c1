"""A merged model: any tool's base model, with the adapter's answers and no adapter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parcels import RECIPE, save_adapter, write_json
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from green_tune import merging, parcel, predictor, tiny
from green_tune.errors import AdapterError, ModelError

IDS = torch.tensor([[1, 5, 9, 7, 11]])


def base_of(folder: Path, precision: str) -> Path:
    """A small base model in a folder, as the hub has one."""
    shape: dict[str, Any] = {"vocab_size": 512, "hidden_size": 16, "intermediate_size": 24,
                             "num_hidden_layers": 2, "num_attention_heads": 2}  # fmt: skip
    dtype = getattr(torch, predictor.DTYPES[precision])
    LlamaForCausalLM(LlamaConfig(**shape)).to(dtype).save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(tiny.folder("tiny")).save_pretrained(folder)
    return folder


def adapter_of(base: Path, folder: Path, precision: str = "fp32", scale: float = 1.0) -> Path:
    """An adapter of it whose second half is not zero, as after a training."""
    shape = json.loads((base / "config.json").read_text())
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
             "num_attention_heads")  # fmt: skip
    save_adapter(folder, {name: shape[name] for name in names})
    config = json.loads((folder / parcel.CONFIG).read_text())
    write_json(folder / parcel.CONFIG, config | {"base_model_name_or_path": str(base)})
    torch.manual_seed(0)
    weights = load_file(folder / parcel.WEIGHTS)
    save_file(
        {name: scale * torch.randn_like(one) for name, one in weights.items()},
        folder / parcel.WEIGHTS,
        {"format": "pt"},
    )
    of_base = {"name": "small", "kind": "folder", "place": str(base), "revision": "",
               "digest": predictor.digest(base)}  # fmt: skip
    write_json(folder / parcel.RECIPE, RECIPE | {"base": of_base, "precision": precision})
    return folder


@pytest.mark.parametrize(("precision", "close"), [("fp32", 1e-4), ("bf16", 0.2), ("fp16", 0.02)])
def test_it_loads_as_any_base_model_in_the_trainings_precision_and_answers_as_the_adapter(
    tmp_path: Path, precision: str, close: float
) -> None:
    base = base_of(tmp_path / "base", precision)
    adapter = adapter_of(base, tmp_path / "adapter", precision, scale=0.3)
    (tmp_path / "merged").mkdir()
    merging.merge(adapter, tmp_path / "merged")
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == getattr(torch, predictor.DTYPES[precision])
    adapted: Any = predictor.Predictor(adapter, device="cpu")
    with torch.inference_mode():
        apart = adapted.model.float()(IDS).logits
        untrained: Any = AutoModelForCausalLM.from_pretrained(base)
        plain = untrained.float()(IDS).logits
        whole = merged.float()(IDS).logits
    assert (whole - apart).abs().max() < close
    assert (plain - apart).abs().max() > 2 * (whole - apart).abs().max()


def test_it_holds_a_model_and_a_tokenizer_without_pickles_that_all_may_read(
    tmp_path: Path,
) -> None:
    adapter = adapter_of(base_of(tmp_path / "base", "fp32"), tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    merging.merge(adapter, tmp_path / "merged")
    files = list((tmp_path / "merged").iterdir())
    needed = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert needed <= {path.name for path in files}
    assert not [path.name for path in files if "adapter" in path.name or path.suffix == ".bin"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}
    assert "peft" not in (tmp_path / "merged" / "config.json").read_text()


def test_it_is_written_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    adapter = adapter_of(base_of(tmp_path / "base", "fp32"), tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    capfd.readouterr()
    merging.merge(adapter, tmp_path / "merged")
    assert capfd.readouterr() == ("", "")


def test_weights_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    adapter = adapter_of(base_of(tmp_path / "base", "fp32"), tmp_path / "adapter", scale=1e30)
    (tmp_path / "merged").mkdir()
    with pytest.raises(ModelError, match="NaNs detected"):
        merging.merge(adapter, tmp_path / "merged")
    assert not list((tmp_path / "merged").iterdir())


def test_a_base_model_that_is_gone_or_was_trained_on_is_one_line(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", "fp32")
    adapter = adapter_of(base, tmp_path / "adapter")
    base_of(base, "fp32")
    with pytest.raises(ModelError, match="holds another model or revision"):
        merging.merge(adapter, tmp_path / "merged")
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="the base model small is not in"):
        merging.merge(adapter, tmp_path / "merged")


def test_an_adapter_that_is_not_to_be_trusted_is_not_loaded(tmp_path: Path) -> None:
    adapter = adapter_of(base_of(tmp_path / "base", "fp32"), tmp_path / "adapter")
    (adapter / "adapter_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(AdapterError, match=r"adapter_model\.bin"):
        merging.merge(adapter, tmp_path / "merged")


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    adapter = adapter_of(base_of(tmp_path / "base", "fp32"), tmp_path / "adapter")
    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)
    with pytest.raises(ModelError, match="cannot be written: No space left on device"):
        merging.merge(adapter, tmp_path)
