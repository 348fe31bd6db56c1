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
from green_tune.hardware import GPUS, Device

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
    monkeypatch.setattr("green_tune.job.this_cpu", lambda: small)
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


def refuse_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_reach(*_: object) -> str:
        raise ModelError("out of reach")

    monkeypatch.setattr("green_tune.job._commit", out_of_reach)


def test_what_is_found_without_a_device_is_what_a_job_is_made_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plug_in(monkeypatch, A100)
    config = TrainConfig(task="qa", max_train_examples=7)
    assert job.find(config).on((A100,)) == job.prepare(config)


def test_what_is_found_fits_on_a_device_that_is_not_here() -> None:
    found = job.find(TrainConfig(model="llama-2-7b"), ask_hub=False)
    alike = replace(A100, memory_gib=40, index=3)
    made = found.on((alike,))
    assert (made.device, made.plan.precision, made.plan.quantization) == (alike, "bf16", "none")
    with pytest.raises(ConfigError, match="bitsandbytes"):
        found.on((T4,), nf4=False)
    assert found.on((T4,), nf4=True).plan.quantization == "nf4"


def test_a_model_of_the_table_is_found_without_the_hub_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse_the_hub(monkeypatch)
    found = job.find(TrainConfig(model="gemma-2b"))
    assert found.shape
    assert (found.commit, found.family, found.shape.layers) == ("", "gemma", 18)
    with pytest.raises(ModelError, match="out of reach"):
        job.find(TrainConfig(model="owner/name"))


def test_the_hub_is_not_asked_where_it_must_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("green_tune.job._commit", asked)
    found = job.find(TrainConfig(model="owner/name"), ask_hub=False)
    assert (found.commit, found.shape, found.family) == ("", None, "")
    assert job.find(TrainConfig(model="mistral-7b"), ask_hub=False).shape


def test_devices_are_those_of_a_list_and_whether_each_is_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plug_in(monkeypatch, replace(A100, uuid="GPU-1"), T4)
    found = job.devices("L4, t4,a100")
    assert [(device.gpu_type, here) for device, here in found] == [
        ("l4", False), ("t4", True), ("a100-40", True), ("a100-80", False),
    ]  # fmt: skip
    assert found[2][0].uuid == "GPU-1"
    assert found[3][0].memory_gib == 80


def test_auto_is_this_machine_first_and_then_the_whole_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without = job.devices("auto")
    assert [here for _, here in without] == [True] + [False] * len(GPUS)
    assert without[0][0].gpu_type == "cpu"
    plug_in(monkeypatch, T4)
    (first, here), *others = job.devices("auto")
    assert (first, here) == (T4, True)
    assert not any(here for _, here in others)
    assert {device.gpu_type for device, _ in others} == {gpu.name for gpu in GPUS} - {"t4"}


def test_the_cpu_can_stand_beside_gpus_and_a_name_counts_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plug_in(monkeypatch, T4)
    names = [(device.gpu_type, here) for device, here in job.devices("cpu,t4,t4,cpu")]
    assert names == [("cpu", True), ("t4", True)]
    with pytest.raises(ConfigError, match="gpu=k80 is unknown"):
        job.devices("t4,k80")


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
