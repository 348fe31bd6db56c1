"""Parcels to tamper with: a real adapter by peft, and a version around it."""

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import yaml

from green_tune import parcel

Entry = tuple[str, list[int], bytes]

LLAMA: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24,
                         "num_hidden_layers": 2, "num_attention_heads": 2}  # fmt: skip
GPT2: dict[str, Any] = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2,
                        "n_positions": 32, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
RECIPE: dict[str, Any] = {
    "format": 1,
    "task": "qa",
    "fields": ["context", "question"],
    "template": ["Context: ", "context", "\nQuestion: {question}\nAnswer:\n"],
    "quality": "answers",
    "labels": [],
    "max_new_tokens": 32,
    "max_seq_len": 512,
    "precision": "fp32",
    "base": {"name": "small", "kind": "folder", "place": "/models/small", "revision": "",
             "digest": "0123456789abcdef"},
}  # fmt: skip
MLMODEL: dict[str, Any] = {
    "flavors": {
        "python_function": {
            "code": "code",
            "config": {"base": ""},
            "data": "adapter",
            "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
            "loader_module": "green_tune_predictor",
            "python_version": "3.11.7",
            "streamable": False,
        }
    },
    "mlflow_version": "3.17.2",
    "model_id": None,
    "model_size_bytes": 1234,
    "model_uuid": "c92c6dc3f990480e8c16e8099965cc97",
    "prompts": None,
    "utc_time_created": "2026-11-23 14:42:28.863518",
}
CONDA = {"name": "mlflow-env", "channels": ["conda-forge"],
         "dependencies": ["python=3.11.7", "pip<=23.2.1", {"pip": ["mlflow==3.17.2"]}]}  # fmt: skip
VIRTUALENV = {"python": "3.11.7", "build_dependencies": ["pip==23.2.1", "wheel"],
              "dependencies": ["-r requirements.txt"]}  # fmt: skip


def save_adapter(folder: Path, shape: dict[str, Any] = LLAMA, **lora: Any) -> Path:
    """A fresh adapter of a tiny model, as green-tune saves one."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    base = (
        LlamaForCausalLM(LlamaConfig(**shape))
        if "hidden_size" in shape
        else GPT2LMHeadModel(GPT2Config(**shape))
    )
    asked: dict[str, Any] = {
        "r": 2,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    } | lora
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        model: Any = get_peft_model(base, LoraConfig(**asked))
    model.peft_config["default"].base_model_name_or_path = "/models/small"
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink()
    return folder


def make_version(folder: Path) -> Path:
    """All of a version but its manifest."""
    adapter = save_adapter(folder / parcel.ADAPTER)
    write_json(adapter / parcel.RECIPE, RECIPE)
    (adapter / parcel.CARD).write_text("# A card\n")
    (adapter / parcel.LABEL).write_bytes(b"\x89PNG\r\n\x1a\n...")
    (folder / "code").mkdir()
    (folder / parcel.CODE).write_text("raise SystemExit('it was executed')\n")
    (folder / parcel.MLMODEL).write_text(yaml.safe_dump(MLMODEL))
    (folder / parcel.REQUIREMENTS).write_text("mlflow==3.17.2\ntorch==2.13.0+cpu\npeft==0.21.2\n")
    (folder / parcel.CONDA).write_text(yaml.safe_dump(CONDA))
    (folder / parcel.VIRTUALENV).write_text(yaml.safe_dump(VIRTUALENV))
    return folder


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1))


def read_tensors(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file, to be changed and written again."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: (one["dtype"], one["shape"], data[8 + length :][slice(*one["data_offsets"])])
        for name, one in header.items()
    }


def write_tensors(path: Path, tensors: dict[str, Entry]) -> None:
    """A safetensors file of whatever is asked for, right or wrong."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, (dtype, shape, data) in tensors.items():
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        body += data
    write_safetensors(path, header, body)


def write_safetensors(path: Path, header: Any, body: bytes) -> None:
    """The same from a header, as an object or as bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
