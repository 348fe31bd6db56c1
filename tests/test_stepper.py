"""Steps are the same however they are cut; what is asked of the adapter is what is trained."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
)

from green_tune import attention, batches, course, loading, loss, probe, quality, tiny, training
from green_tune.batches import Micro
from green_tune.course import Progress, Watch
from green_tune.errors import ModelError, OutOfMemory, TrainingDiverged
from green_tune.job import Job
from green_tune.results import TrainResult
from green_tune.stepper import Stepper

MakeJob = Callable[..., Job]


def fit(job: Job) -> tuple[list[float], TrainResult, training.FineTuner]:
    """The curve of training losses, the result, and the trained model."""
    seen: list[Progress] = []
    tuner = training.load(job)
    result = tuner.fit(Watch(on_progress=seen.append))
    losses = [p.metrics["train_loss"] for p in seen if "train_loss" in p.metrics]
    return losses, result, tuner


@pytest.mark.parametrize(
    "how",
    [
        {"batching": "tree"},
        {"batching": "padded"},
        {"attention": "padded"},
        {"micro_batch_tokens": 64},
        {"batch_size": 2, "accumulation_steps": 4},
        {"batching": "padded", "batch_size": 2, "accumulation_steps": 4},
        {"gradient_checkpointing": "true"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_a_training_is_the_same_however_it_is_computed(
    make_job: MakeJob, how: dict[str, Any]
) -> None:
    """Sentiment shares no passage, so that the order of a tree is by chance as well."""
    expected, _, _ = fit(make_job(learning_rate=2e-3, batching="flat"))
    found, _, _ = fit(make_job(**({"learning_rate": 2e-3, "batching": "flat"} | how)))
    assert found == pytest.approx(expected, rel=2e-5)


def test_a_tree_computes_less_and_learns_from_the_same_tokens(make_job: MakeJob) -> None:
    whole = {"task": "qa", "max_train_examples": 0}
    _, flat, _ = fit(make_job(batching="flat", **whole))
    _, tree, _ = fit(make_job(**whole))
    assert flat.train_tokens == flat.processed_tokens == tree.train_tokens
    assert tree.processed_tokens < 0.6 * tree.train_tokens
    assert tree.start_val_loss == pytest.approx(flat.start_val_loss, rel=1e-5)


def out_of_memory_beyond(monkeypatch: pytest.MonkeyPatch, tokens: int) -> list[int]:
    """A fake of a GPU's out-of-memory, by size of the micro-batch; gives the sizes that fitted."""
    fitted: list[int] = []
    real = loss.LabelLoss.forward

    def forward(self: loss.LabelLoss, micro: Micro) -> torch.Tensor:
        if len(micro.ids) > tokens and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        fitted.append(len(micro.ids))
        return real(self, micro)

    monkeypatch.setattr(loss.LabelLoss, "forward", forward)
    return fitted


def test_an_out_of_memory_halves_the_micro_batch_and_keeps_the_step(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _, _ = fit(make_job())
    out_of_memory_beyond(monkeypatch, 150)
    found, result, _ = fit(make_job())
    assert found == pytest.approx(expected, rel=1e-5)
    assert result.micro_batch_halvings in (1, 2)
    assert caplog.text.count("out of memory with a micro-batch of") == result.micro_batch_halvings
    assert result.steps == 6


def test_a_validation_that_does_not_fit_is_cut_smaller(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake of a GPU's out-of-memory, in validations alone."""
    tuner = training.load(make_job(max_eval_examples=60, max_seq_len=64))
    expected = tuner.validate()
    real, sizes = loss.LabelLoss.forward, []

    def forward(self: loss.LabelLoss, micro: Micro) -> torch.Tensor:
        if len(micro.ids) > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        sizes.append(len(micro.ids))
        return real(self, micro)

    monkeypatch.setattr(loss.LabelLoss, "forward", forward)
    tuner._at_once, tuner._to_validate = 1000, []
    assert tuner.validate().loss == pytest.approx(expected.loss, rel=1e-6)
    assert len(sizes) > 3


def test_an_example_that_does_not_fit_alone_is_one_clear_line(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_memory_beyond(monkeypatch, 5)
    with pytest.raises(OutOfMemory, match=r"micro_batch_tokens=.*gradient_checkpointing=true"):
        fit(make_job())


@pytest.mark.parametrize(
    ("asked", "adapted"),
    [
        ({"lora_targets": "attention"}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ({"lora_targets": "mlp"}, {"gate_proj", "up_proj", "down_proj"}),
        ({"lora_targets": "q_proj", "lora_layers": 1}, {"q_proj"}),
    ],
)
def test_the_adapter_is_placed_where_it_was_asked_for(
    make_job: MakeJob, asked: dict[str, Any], adapted: set[str]
) -> None:
    tuner = training.load(make_job(**asked))
    trained = [n for n, p in tuner.model.named_parameters() if p.requires_grad]
    assert {name.split(".lora_")[0].split(".")[-1] for name in trained} == adapted
    layers = {name.split(".layers.")[1].split(".")[0] for name in trained}
    assert layers == ({"1"} if "lora_layers" in asked else {"0", "1"})


def test_more_layers_than_there_are_is_one_clear_line(make_job: MakeJob) -> None:
    with pytest.raises(ModelError, match="lora_layers=3: tiny has 2"):
        training.load(make_job(lora_layers=3))


@pytest.mark.parametrize(
    "kind", [{"use_dora": True}, {"use_rslora": True}, {"loraplus_ratio": 8.0}]
)
def test_other_kinds_of_lora_learn_otherwise(make_job: MakeJob, kind: dict[str, Any]) -> None:
    plain, _, _ = fit(make_job(learning_rate=2e-3, epochs=2))
    other, result, _ = fit(make_job(learning_rate=2e-3, epochs=2, **kind))
    assert other[0] == pytest.approx(plain[0], rel=1e-5)  # an adapter begins as nothing
    assert other != plain
    assert result.val_loss < result.start_val_loss


def test_trainings_of_one_process_may_differ_in_precision(make_job: MakeJob) -> None:
    """bf16 on a CPU is slow, and computes as on a GPU: weights in 16 bits, the adapter in 32."""
    exact, _, _ = fit(make_job())
    found, _, tuner = fit(make_job(precision="bf16"))
    again, _, _ = fit(make_job())
    assert again == exact != found
    assert found == pytest.approx(exact, rel=1e-2)
    kept = {p.dtype for n, p in tuner.model.named_parameters() if "lora_" in n}
    assert (kept, tuner.loss.base.dtype) == ({torch.float32}, torch.bfloat16)


def test_loraplus_gives_b_a_higher_learning_rate(make_job: MakeJob) -> None:
    asked = {"learning_rate": 1e-3, "warmup_steps": 0, "weight_decay": 0.1}
    tuner = training.load(make_job(loraplus_ratio=16.0, **asked))
    stepper = Stepper(tuner.job, tuner.loss, tuner.steps)
    rates = {group["lr"] for group in stepper._optimizer.param_groups if group["params"]}
    assert rates == {1e-3, 16e-3}
    assert 0.1 in {group["weight_decay"] for group in stepper._optimizer.param_groups}


def test_a_contaminated_batch_is_refused_before_the_first_step(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake attention that forgets where examples begin, as models do that ignore the layout."""

    def forgetful(module: Any, query: Any, key: Any, value: Any, mask: Any, **_: Any) -> Any:
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        seen = scaled_dot_product_attention(query, key, value, is_causal=True)
        return seen.transpose(1, 2), None

    tuner = training.load(make_job())
    AttentionInterface.register(attention.NAMES["documents"], forgetful)
    try:
        with pytest.raises(ModelError, match=r"would see one another.*batching=padded"):
            tuner.fit()
    finally:
        attention.register()


def test_wrong_positions_are_noticed_too(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner = training.load(make_job())
    real = batches.flat

    def shifted(*args: Any, **kwargs: Any) -> Micro:
        micro = real(*args, **kwargs)
        return replace(micro, positions=list(range(len(micro.ids))))

    monkeypatch.setattr(batches, "flat", shifted)
    # rotary embeddings know distances alone: only a branch away from its stem is wrong
    with pytest.raises(ModelError, match="would see one another"):
        probe.check_examples_apart(tuner.loss, tuner.train, tuner.job)


@pytest.mark.parametrize("batching", ["flat", "tree", "padded"])
def test_logits_that_are_scaled_after_the_output_layer_are_the_models_own(
    make_job: MakeJob, tmp_path: Path, batching: str
) -> None:
    shape: dict[str, Any] = {
        "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "pad_token_id": 0, "logits_scaling": 8.0,
    }  # fmt: skip
    torch.manual_seed(0)
    made: Any = GraniteForCausalLM(GraniteConfig(**shape))
    torch.nn.init.normal_(made.lm_head.weight)
    made.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny.folder()).save_pretrained(tmp_path)
    tuner = training.load(make_job(model=str(tmp_path), batching=batching, quality_examples=4))
    quality.measure(tuner)  # what comes before the training knows it as well
    assert not tuner.loss.plain
    result = tuner.fit()
    assert not tuner.loss.plain
    assert result.val_loss == pytest.approx(_one_by_one(tuner), rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_of_a_plain_output_layer_are_known_as_such(
    make_job: MakeJob, precision: str
) -> None:
    """In 16 bits too, where rounding must not be taken for a scale: its logits need more memory."""
    tuner = training.load(make_job(precision=precision))
    tuner.loss.plain = False
    tuner.check()
    assert tuner.loss.plain


def test_short_examples_first_do_not_keep_trees_from_being_looked_at(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner = training.load(make_job(task="qa"))
    tuner.train.sort(key=lambda example: len(example["input_ids"]))
    laid: list[Micro] = []
    real = batches.flat

    def look(*args: Any, **kwargs: Any) -> Micro:
        laid.append(real(*args, **kwargs))
        return laid[-1]

    monkeypatch.setattr(batches, "flat", look)
    tuner.check()
    assert [max(node.parent for node in micro.nodes) for micro in laid] == [-1, 0]


def test_the_layers_are_the_decoders_even_where_a_layer_holds_a_longer_list() -> None:
    experts = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(9))
    layers = torch.nn.ModuleList(torch.nn.ModuleDict({"experts": experts}) for _ in range(3))
    assert loading._layers(torch.nn.ModuleDict({"layers": layers})) == list(layers)


def _one_by_one(tuner: training.FineTuner) -> float:
    """The validation loss by the model's own logits, with no batches."""
    total = labels = 0.0
    with torch.inference_mode(), attention.stock(tuner.loss.base):
        for example in tuner.validation:
            ids = torch.tensor([example["input_ids"]])
            scores = tuner.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
            total -= float(scores[-example["labelled"] :].sum())
            labels += example["labelled"]
    return total / labels


def test_a_base_that_sees_what_comes_later_is_refused(make_job: MakeJob, tmp_path: Path) -> None:
    """A BERT whose config does not say what it is, in the way that our own advice names."""
    shape: dict[str, Any] = {
        "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }  # fmt: skip
    BertLMHeadModel(BertConfig(**shape)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny.folder()).save_pretrained(tmp_path)
    tuner = training.load(make_job(model=str(tmp_path), batching="padded"))
    with pytest.raises(ModelError, match="sees what comes after a token"):
        tuner.fit()


def test_stopping_early_gives_back_the_best_adapter(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses are given, so that the best is neither the first nor the last."""
    given = iter([5.0, 4.0, 3.9, 3.95, 3.94, 3.93, 3.92])
    monkeypatch.setattr(
        training.FineTuner,
        "validate",
        lambda self: course.Validation(loss=next(given), bits_per_byte=1.0),
    )
    kept: dict[int, torch.Tensor] = {}
    grams = iter(range(100))
    tuner = training.load(make_job(evals=6, learning_rate=2e-3, min_gain_per_g=0.5))

    def look(progress: Progress) -> None:
        if "val_loss" in progress.metrics:
            kept[progress.step] = _weights(tuner)

    result = tuner.fit(Watch(on_progress=look, spent_g=lambda: float(next(grams))))
    assert (result.steps, result.steps_planned) == (3, 6)
    assert result.val_loss == 3.9
    assert torch.equal(_weights(tuner), kept[2])
    assert not torch.equal(kept[2], kept[3])


def _weights(tuner: training.FineTuner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in tuner.model.parameters() if p.requires_grad])


def test_without_a_wish_to_stop_all_steps_are_taken(make_job: MakeJob) -> None:
    _, result, _ = fit(make_job(evals=6, learning_rate=1e-9))
    assert result.steps == result.steps_planned == 6


def test_fp16_that_overflows_in_many_steps_ends_the_training(make_job: MakeJob) -> None:
    """A fake of a GradScaler's verdict: fp16 needs a GPU."""
    tuner = training.load(make_job(epochs=8))
    stepper = Stepper(tuner.job, tuner.loss, tuner.steps)

    class Overflowing:
        step_was_skipped = True

        def step(self) -> None: ...

        def zero_grad(self) -> None: ...

    stepper._optimizer = Overflowing()
    with pytest.raises(TrainingDiverged, match=r"of 21 steps overflowed in fp16"):
        for _ in range(40):
            stepper.step(tuner.train[:8])
