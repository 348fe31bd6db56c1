"""One training after the other on the same base model: nothing of one is left in the next."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from green_tune import loading, lora, probe, training
from green_tune.course import Progress, Watch
from green_tune.errors import OutOfMemory, TrainingDiverged
from green_tune.job import Job
from green_tune.tokens import Encoder
from green_tune.training import Bench

MakeJob = Callable[..., Job]


def digest(model: Any) -> str:
    """Of everything in a base model, names and bytes."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def trained(tuner: training.FineTuner, folder: Path) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """Everything that was reported but its speed, and the adapter."""
    seen: list[Progress] = []
    result = tuner.fit(Watch(on_progress=seen.append))
    tuner.save(folder)
    curves = [
        (each.step, {k: v for k, v in each.metrics.items() if k != "tokens_per_s"}) for each in seen
    ]
    return [*curves, result.val_loss], load_file(folder / "adapter_model.safetensors")


TRIALS: list[dict[str, Any]] = [
    {"batch_size": 4, "lora_rank": 8, "learning_rate": 2e-3},
    {"batch_size": 8, "lora_rank": 32, "learning_rate": 1e-3, "gradient_checkpointing": "true"},
    {"batch_size": 2, "accumulation_steps": 4, "lora_rank": 4, "epochs": 2, "lora_dropout": 0.1},
    {"batch_size": 4, "use_dora": True, "lora_targets": "attention"},
    {"batch_size": 4, "lora_layers": 1, "precision": "bf16"},
    {"batch_size": 4, "lora_rank": 8, "learning_rate": 2e-3},
]


def test_each_training_on_a_bench_is_the_one_that_it_would_be_alone(
    make_job: MakeJob, tmp_path: Path
) -> None:
    bench = Bench()
    for number, asked in enumerate(TRIALS):
        job = make_job(**asked)
        shared = trained(bench.load(job), tmp_path / f"shared-{number}")
        alone = trained(training.load(job), tmp_path / f"alone-{number}")
        assert shared[0] == alone[0], asked
        assert shared[1].keys() == alone[1].keys()
        assert all(torch.equal(shared[1][name], alone[1][name]) for name in alone[1]), asked


def test_base_weights_are_the_same_bits_after_each_training(make_job: MakeJob) -> None:
    base = loading.Base(make_job())
    before = digest(base.model)
    for asked in TRIALS[:4]:
        job = make_job(**asked)
        bench = Bench()
        bench._base = base
        bench.load(job).fit()
        base._free()
        assert digest(base.model) == before
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_the_base_is_loaded_the_data_tokenised_and_the_start_validated_once(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"load": 0, "encode": 0, "validate": 0, "probe": 0}

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            counts[name] += 1
            return real(*given, **more)

        return call

    monkeypatch.setattr(loading, "_load_base", counted("load", loading._load_base))
    monkeypatch.setattr(Encoder, "encode", counted("encode", Encoder.encode))
    tuner = training.FineTuner
    monkeypatch.setattr(tuner, "validate", counted("validate", tuner.validate))
    probed = counted("probe", probe.check_examples_apart)
    monkeypatch.setattr("green_tune.training.check_examples_apart", probed)
    bench = Bench()
    for rank in (4, 8, 16):
        bench.load(make_job(lora_rank=rank, evals=2)).fit()
    assert counts == {"load": 1, "encode": 2, "validate": 1 + 3 * 2, "probe": 1}


def test_another_model_precision_or_data_set_is_loaded_anew(make_job: MakeJob) -> None:
    bench = Bench()
    first = bench.load(make_job())
    assert bench.load(make_job(lora_rank=4)).loss.base is first.loss.base
    assert bench.load(make_job(task="qa")).train is not first.train
    other = bench.load(make_job(precision="bf16"))
    assert other.loss.base is not first.loss.base
    assert next(other.loss.base.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("error", [OutOfMemory("full"), TrainingDiverged("nan")])
def test_a_training_that_failed_leaves_the_bench_as_it_was(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    bench = Bench()

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("green_tune.stepper.Stepper._count_skipped", fail)
        with pytest.raises(type(error)):
            bench.load(make_job(lora_rank=64)).fit()
    job = make_job()
    shared = trained(bench.load(job), tmp_path / "shared")
    assert shared[0] == trained(training.load(job), tmp_path / "alone")[0]


def test_a_base_that_an_adapter_was_half_put_on_is_not_used_again(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, fuse = Bench(), lora.fuse
    before = bench.load(make_job()).loss.base

    def fail(model: Any) -> int:
        raise OutOfMemory("full")

    with monkeypatch.context() as patch:
        patch.setattr(lora, "fuse", fail)
        with pytest.raises(OutOfMemory):
            bench.load(make_job(lora_rank=64))
    assert lora.fuse is fuse
    assert bench.load(make_job()).loss.base is not before
