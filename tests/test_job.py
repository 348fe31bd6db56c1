"""A job: all that a user can get wrong is found before anything heavy starts."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import a_cpu, a_gpu

import green_tune
from green_tune import job
from green_tune.config import TrainConfig
from green_tune.errors import ConfigError, DataError, HardwareMismatch, ModelError, StoreError
from green_tune.hardware import Device

HEAVY = ["torch", "transformers", "peft", "accelerate", "tokenizers", "mlflow", "optuna",
         "codecarbon", "datasets", "huggingface_hub", "matplotlib", "numpy"]  # fmt: skip
CPU = a_cpu()
T4 = a_gpu("Tesla T4", (7, 5))
A100 = a_gpu("NVIDIA A100-SXM4-40GB", (8, 0))
UNKNOWN = a_gpu("NVIDIA GeForce GTX 1080", (6, 1))
MISTRAL = {
    "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 32000,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
}  # fmt: skip
NEWER = a_gpu("NVIDIA R1000", (11, 0))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of its own, and no GPU unless a test plugs one in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    plug_in(monkeypatch)
    return tmp_path


def plug_in(monkeypatch: pytest.MonkeyPatch, *gpus: Device) -> None:
    monkeypatch.setattr("green_tune.job.nvml.find_gpus", lambda: list(gpus))


def test_the_defaults_are_ready_on_any_cpu(here: Path) -> None:
    ready = job.prepare(TrainConfig())
    assert (ready.source.name, ready.commit, ready.task.name) == ("tiny", "", "sentiment")
    assert (len(ready.data.train), len(ready.data.validation)) == (320, 80)
    assert (ready.device.kind, ready.device.gpu_type) == ("cpu", "cpu")
    assert 0 < ready.device.memory_gib < 1e5
    assert ready.intensity.assumed
    assert list(here.iterdir()) == []  # nothing is written


def test_only_the_examples_that_were_asked_for_are_taken() -> None:
    ready = job.prepare(TrainConfig(task="qa", max_train_examples=5, max_eval_examples=7))
    assert (len(ready.data.train), len(ready.data.validation)) == (5, 7)


@pytest.mark.parametrize(
    ("gpus", "precision"),
    [([T4], "fp16"), ([A100, T4], "bf16"), ([UNKNOWN], "fp32"), ([NEWER], "fp32"), ([], "fp32")],
)
def test_auto_precision_is_what_the_device_does_natively(
    monkeypatch: pytest.MonkeyPatch, gpus: list[Device], precision: str
) -> None:
    plug_in(monkeypatch, *gpus)
    plan = job.prepare(TrainConfig()).plan
    assert plan.precision == precision
    assert any(reason.startswith(f"{precision}: ") for reason in plan.reasons)


def test_an_unknown_gpu_is_warned_about_once_with_its_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plug_in(monkeypatch, UNKNOWN)
    ready = job.prepare(TrainConfig())
    assert caplog.text.count("NVIDIA GeForce GTX 1080 is not in the table of GPUs") == 1
    assert ready.plan.precision == "fp32"


def test_a_trial_is_the_same_job_planned_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, UNKNOWN)
    ready = job.prepare(TrainConfig())
    trial = ready.with_config(TrainConfig(batch_size=2, accumulation_steps=3))
    assert (trial.plan.examples, ready.plan.examples) == (6, 8)
    assert replace(trial, config=ready.config, plan=ready.plan) == ready


def test_a_model_that_cannot_fit_is_refused_before_its_weights_are_looked_for(here: Path) -> None:
    folder = here / "large"
    folder.mkdir()
    shape = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000,
        "hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 128,
        "num_attention_heads": 128, "max_position_embeddings": 4096,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(shape))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"large does not fit into .* needs \d+"):
        job.prepare(TrainConfig(model=str(folder), gpu="cpu"))


def test_a_model_of_the_table_is_refused_before_the_hub_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("green_tune.job._commit", asked)
    small = replace(CPU, memory_gib=16.0)
    monkeypatch.setattr("green_tune.job._cpu", lambda: small)
    with pytest.raises(ConfigError, match=r"llama-2-7b does not fit into Xeon.* what would fit"):
        job.prepare(TrainConfig(model="llama-2-7b", gpu="cpu"))
    with pytest.raises(AssertionError):
        job.prepare(TrainConfig(model="gemma-2b", gpu="cpu", precision="bf16"))


def test_trials_share_the_bits_and_the_precision_that_their_largest_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mistral fits an L4 in 16 bits with rank 16, and not with rank 64."""
    plug_in(monkeypatch, replace(a_gpu("NVIDIA L4", (8, 9)), memory_gib=22.5))
    monkeypatch.setattr("green_tune.job._commit", lambda *_: "c0ffee")
    monkeypatch.setattr("green_tune.job._config_json", lambda *_: MISTRAL)
    here = job.prepare(TrainConfig(model="mistral-7b"))
    assert here.plan.quantization == "none"
    largest = TrainConfig(model="mistral-7b", lora_rank=64)
    with pytest.raises(ConfigError, match="bitsandbytes"):
        here.pinned(largest)
    monkeypatch.setattr("green_tune.job.find_spec", lambda name: name == "bitsandbytes")
    pinned = here.pinned(largest)
    assert (pinned.plan.quantization, pinned.plan.precision) == ("nf4", "bf16")
    assert pinned.with_config(pinned.config).plan == pinned.plan


def test_a_base_that_is_no_causal_language_model_is_refused(here: Path) -> None:
    folder = here / "bert"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="bert is a BertForMaskedLM, not a causal language model"):
        job.prepare(TrainConfig(model=str(folder)))


@pytest.mark.parametrize(
    ("asked", "error", "line"),
    [
        ({"task": "translation"}, ConfigError, "task=translation is unknown; known: qa, "),
        ({"country": "XXX"}, ConfigError, "country=XXX is neither an ISO code"),
        ({"model": "gpt"}, ModelError, "model=gpt is unknown; known: tiny, "),
        ({"model": "owner/no--such"}, ModelError, "model.owner/no--such "),
        ({"model": "owner/no.git"}, ModelError, "model.owner/no.git "),
        ({"gpu": "k80"}, ConfigError, "gpu=k80 is unknown; known: auto, cpu, t4, "),
        ({"gpu": "t4"}, HardwareMismatch, "gpu=t4 is not in this machine; found: no GPU"),
        ({"data": "/no/reviews"}, DataError, "data=/no/reviews is not a folder"),
    ],
)
def test_what_does_not_exist_is_refused(
    asked: dict[str, str], error: type[Exception], line: str
) -> None:
    with pytest.raises(error, match=f"^{line}"):
        job.prepare(TrainConfig.parse(asked))


def test_a_store_that_cannot_be_used_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:./mlruns")
    with pytest.raises(StoreError, match=r"^file:\./mlruns is a folder"):
        job.prepare(TrainConfig())


def test_nothing_heavy_is_imported_before_a_job_is_ready(here: Path) -> None:
    code = f"""if True:
        import json, sys
        from green_tune import errors, job
        from green_tune.config import TrainConfig
        heavy = lambda: [name for name in {HEAVY} if name in sys.modules]
        try:
            job.prepare(TrainConfig(gpu="t4"))
        except errors.HardwareMismatch as error:
            refused = [str(error), heavy()]
        print(json.dumps([refused, [len(job.prepare(TrainConfig()).data.train), heavy()]]))
    """
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(Path(green_tune.__file__).parents[1]),
    }
    answer = subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=here)
    (line, after_refusal), (examples, when_ready) = json.loads(answer)
    assert line.startswith("gpu=t4 is not in this machine; found: no GPU")
    assert (after_refusal, examples, when_ready) == ([], 320, [])
