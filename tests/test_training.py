import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GemmaConfig,
    GPT2Config,
    MistralConfig,
    PreTrainedConfig,
)

from green_tune import attention, stop, tiny, training
from green_tune.course import Progress, Watch
from green_tune.errors import HardwareMismatch, ModelError, Stopped, TrainingDiverged
from green_tune.hardware import Device
from green_tune.job import Job

MakeJob = Callable[..., Job]
SHAPE: dict[str, Any] = {
    "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0,
}  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def fit(job: Job) -> tuple[training.FineTuner, list[Progress]]:
    seen: list[Progress] = []
    tuner = training.load(job)
    tuner.fit(Watch(on_progress=seen.append))
    return tuner, seen


def curve(seen: list[Progress], name: str) -> list[float]:
    return [progress.metrics[name] for progress in seen if name in progress.metrics]


def broken(folder: Path, weight: float) -> Path:
    """`tiny` with every weight of its output layer set to `weight`."""
    model = AutoModelForCausalLM.from_pretrained(tiny.folder())
    with torch.no_grad():
        model.lm_head.weight.fill_(weight)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny.folder()).save_pretrained(folder)
    return folder


def test_tiny_is_the_same_to_the_byte_each_time_it_is_built(tmp_path: Path) -> None:
    built = [digests(tiny.build(tmp_path / name)) for name in ("one", "two")]
    assert built[0] == built[1]
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= built[0].keys()


def test_training_lowers_the_validation_loss_and_reports_its_course(make_job: MakeJob) -> None:
    job = make_job(epochs=3, learning_rate=2e-3, evals=3, max_train_examples=64)
    tuner, seen = fit(job)
    losses = curve(seen, "val_loss")
    assert len(losses) == 4  # before the first step, and three times
    assert losses[-1] < losses[0] - 1
    assert seen[-1].step == seen[-1].steps == tuner.steps == 24
    assert len(curve(seen, "train_loss")) == 24
    assert all(speed > 0 for speed in curve(seen, "tokens_per_s"))


def test_the_result_counts_what_was_trained(make_job: MakeJob) -> None:
    tuner = training.load(make_job(epochs=2))
    tokens = sum(len(example["input_ids"]) for example in tuner.train)
    result = tuner.fit()
    assert result.train_tokens == 2 * tokens
    assert result.steps == 12
    whole = sum(weights.numel() for weights in tuner.model.parameters())
    assert result.base_parameters == whole - 32_768
    assert result.trainable_parameters == 32_768  # rank 16 on the seven layers of two blocks
    assert result.val_loss < result.start_val_loss


def test_only_the_adapter_is_trained(make_job: MakeJob) -> None:
    tuner = training.load(make_job())
    frozen = {n: p.clone() for n, p in tuner.model.named_parameters() if not p.requires_grad}
    tuner.fit()
    after = dict(tuner.model.named_parameters())
    assert frozen
    assert all(torch.equal(after[name], before) for name, before in frozen.items())


def test_a_training_on_a_cpu_counts_subnormal_numbers_as_zero(make_job: MakeJob) -> None:
    subnormal = torch.tensor([1e-39])
    assert (subnormal * 1).item() > 0
    training.load(make_job())
    assert (subnormal * 1).item() == 0


def test_the_same_seed_gives_the_same_losses_and_another_does_not(make_job: MakeJob) -> None:
    first, again, other = (curve(fit(make_job(seed=s))[1], "train_loss") for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_accumulation_gives_the_losses_of_the_batch_it_stands_for(make_job: MakeJob) -> None:
    whole = curve(fit(make_job(batch_size=8, accumulation_steps=1))[1], "train_loss")
    parts = curve(fit(make_job(batch_size=2, accumulation_steps=4))[1], "train_loss")
    assert parts == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_the_validation_loss_is_that_of_one_example_at_a_time(
    make_job: MakeJob, batch_size: int
) -> None:
    tuner = training.load(make_job(task="qa", batch_size=batch_size))
    model = AutoModelForCausalLM.from_pretrained(tiny.folder())
    total = labels = 0.0
    for example in tuner.validation:
        ids = torch.tensor([example["input_ids"]])
        with torch.inference_mode():
            logits = model(ids).logits[0, :-1].log_softmax(-1)
        scores = logits.gather(1, ids[0, 1:, None])[-example["labelled"] :]
        total, labels = total - float(scores.sum()), labels + example["labelled"]
    text_bytes = sum(e["completion_bytes"] for e in tuner.validation)
    validation = tuner.validate()
    assert validation.loss == pytest.approx(total / labels, rel=1e-5)
    assert validation.bits_per_byte == pytest.approx(total / math.log(2) / text_bytes, rel=1e-5)


def test_the_saved_adapter_loads_with_plain_peft_and_predicts_the_same(
    make_job: MakeJob, tmp_path: Path
) -> None:
    tuner, _ = fit(make_job(learning_rate=2e-3))
    tuner.save(tmp_path / "adapter")
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert files == {"adapter_model.safetensors", "adapter_config.json", "recipe.json"}
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny.folder())  # where plain peft finds it
    base = AutoModelForCausalLM.from_pretrained(tiny.folder())
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    ids = torch.tensor([tuner.validation[0]["input_ids"]])
    tuner.model.eval()
    with torch.inference_mode(), attention.stock(tuner.loss.base):
        assert torch.equal(loaded(ids).logits, tuner.model(ids).logits)


@pytest.mark.parametrize(
    ("targets", "adapted"), [("q_proj, v_proj", {"q_proj", "v_proj"}), ("down_proj", {"down_proj"})]
)
def test_named_layers_alone_are_adapted(make_job: MakeJob, targets: str, adapted: set[str]) -> None:
    tuner = training.load(make_job(lora_targets=targets))
    trained = [n for n, p in tuner.model.named_parameters() if p.requires_grad]
    assert {name.split(".lora_")[0].split(".")[-1] for name in trained} == adapted


def test_layers_that_the_model_does_not_have_are_named(make_job: MakeJob) -> None:
    for targets in ("nope", "q_proj,vproj", "q_proj,", "all-linear,q_proj"):
        with pytest.raises(ModelError, match=f"lora_targets={targets}: tiny has no layer"):
            training.load(make_job(lora_targets=targets))


def test_a_loss_that_is_no_number_stops_the_training(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(model=str(broken(tmp_path / "nan", math.nan)))
    with pytest.raises(TrainingDiverged, match=r"validation loss is nan at step 0"):
        fit(job)


def test_a_loss_that_becomes_no_number_in_mid_training_stops_it_there(make_job: MakeJob) -> None:
    tuner = training.load(make_job(epochs=2))
    adapter = next(p for p in tuner.model.parameters() if p.requires_grad)

    def poison(progress: Progress) -> None:
        if progress.step == 3:
            with torch.no_grad():
                adapter.fill_(math.nan)

    with pytest.raises(TrainingDiverged, match="loss is nan at step 4"):
        tuner.fit(Watch(on_progress=poison))


def test_a_folder_that_holds_no_loadable_model_is_one_clear_line(
    make_job: MakeJob, tmp_path: Path
) -> None:
    folder = broken(tmp_path / "model", 0.0)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="model cannot be loaded") as caught:
        training.load(make_job(model=str(folder)))
    assert "\n" not in str(caught.value)


def test_a_model_that_lacks_weights_is_refused(make_job: MakeJob, tmp_path: Path) -> None:
    folder = broken(tmp_path / "model", 0.0)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, such as model\.layers\.1\.mlp\.up"):
        training.load(make_job(model=str(folder)))


def test_a_tokenizer_of_another_model_is_refused(make_job: MakeJob, tmp_path: Path) -> None:
    folder = broken(tmp_path / "model", 0.0)
    tokenizer = AutoTokenizer.from_pretrained(tiny.folder())
    tokenizer.add_tokens([f"word{number}" for number in range(10)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="1024 tokens, and its tokenizer makes 1034"):
        training.load(make_job(model=str(folder)))


@pytest.mark.parametrize("content", [b"", b"garbage" * 50])
def test_a_broken_weights_file_is_one_clear_line(
    make_job: MakeJob, tmp_path: Path, content: bytes
) -> None:
    folder = broken(tmp_path / "model", 0.0)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="model cannot be loaded") as caught:
        training.load(make_job(model=str(folder)))
    assert "\n" not in str(caught.value)


def test_a_stop_that_python_dropped_ends_the_training_at_the_next_step(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner = training.load(make_job())
    seen: list[Progress] = []

    def ask(progress: Progress) -> None:
        seen.append(progress)
        if progress.step == 2:
            monkeypatch.setattr(stop, "_asked", [15])

    with pytest.raises(Stopped):
        tuner.fit(Watch(on_progress=ask))
    assert seen[-1].step == 2


def test_texts_beyond_the_models_context_are_cut_with_a_warning(
    make_job: MakeJob, caplog: pytest.LogCaptureFixture
) -> None:
    tuner = training.load(make_job(max_seq_len=100_000, task="qa"))
    assert tuner.max_seq_len == 4096
    assert "lowered to the model's context of 4096" in caplog.text


def test_long_examples_are_counted(make_job: MakeJob) -> None:
    tuner = training.load(make_job(task="summarization", max_seq_len=96))
    fits = tuner.fits["train"]
    assert fits.total == 48
    assert fits.cut > 40
    assert all(len(example["input_ids"]) <= 96 for example in tuner.train)


@pytest.mark.parametrize(
    "family",
    [
        MistralConfig(sliding_window=32, num_key_value_heads=2, **SHAPE),
        GemmaConfig(head_dim=32, num_key_value_heads=1, **SHAPE),
        GPT2Config(vocab_size=1024, n_embd=32, n_layer=1, n_head=2, n_positions=256),
    ],
    ids=["mistral", "gemma", "gpt2"],
)
def test_other_model_families_learn_and_are_saved(
    make_job: MakeJob, tmp_path: Path, family: PreTrainedConfig
) -> None:
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_config(family).save_pretrained(folder)  # type: ignore[no-untyped-call]
    AutoTokenizer.from_pretrained(tiny.folder()).save_pretrained(folder)
    tuner, seen = fit(make_job(model=str(folder), learning_rate=5e-3, max_seq_len=128))
    losses = curve(seen, "val_loss")
    assert losses[-1] < losses[0]
    tuner.save(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size > 0


def test_a_real_pretrained_model_learns_real_data(make_job: MakeJob, shared: Path) -> None:
    job = make_job(
        model=str(shared / "models" / "stories260K"),
        data=str(shared / "sentiment"),
        max_train_examples=200,
        learning_rate=1e-3,
    )
    _, seen = fit(job)
    losses = curve(seen, "val_loss")
    assert losses[-1] < losses[0] / 4


T4 = Device(kind="cuda", name="Tesla T4", memory_gib=15, uuid="GPU-aaaa", capability=(7, 5))


@pytest.mark.parametrize(
    ("cuda", "there", "kernels", "why"),
    [
        (None, False, [], "install a CUDA build of torch"),
        ("13.0", False, [], "the driver must serve CUDA 13.0"),
        ("13.0", True, ["sm_80", "sm_90"], "no kernels for capability 7.5"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_refused_before_anything_is_loaded(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch,
    cuda: str | None, there: bool, kernels: list[str], why: str,
) -> None:  # fmt: skip
    """A fake torch.cuda: there is no GPU here."""
    job = replace(make_job(), devices=(T4,))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: kernels)
    with pytest.raises(HardwareMismatch, match=f"cannot use Tesla T4: .*{why}"):
        training.load(job)


def test_a_gpu_that_torch_uses_but_nobody_measures_is_refused(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake torch.cuda: there is no GPU here."""
    job = replace(make_job(), devices=(T4,))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75"])
    found = SimpleNamespace(uuid="bbbb")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
    with pytest.raises(HardwareMismatch, match=r"another GPU .bbbb. than the one that is measured"):
        training.load(job)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa"


def test_what_another_launcher_has_left_in_the_environment_changes_nothing(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    result = training.load(make_job(max_train_examples=8)).fit()
    assert result.train_tokens > 0
