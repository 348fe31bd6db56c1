"""Soundings of the small base model: real steps, random weights, nothing read."""

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from green_tune import evidence, loading, pace, quality, sounding, stop, tiny, training
from green_tune.effort import Texts, Work
from green_tune.errors import ConfigError, ModelError, OutOfMemory, Stopped
from green_tune.job import Job
from green_tune.models import TINY_CONFIG
from green_tune.pace import Seen
from green_tune.sounding import Sketch, Sounding
from green_tune.stepper import Stepper
from green_tune.tokens import Encoded, Encoder
from green_tune.training import FineTuner

MakeJob = Callable[..., Job]
BRIEF_S = 0.05
TICK_S = 0.001
NOTHING = (0.0, 0.0)  # kWh and hours


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which each look takes a millisecond, so that as many steps fit on any machine."""
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: TICK_S * next(ticks))
    monkeypatch.setattr(sounding, "time", clock)


def texts(job: Job) -> Texts:
    tokenizer = loading.open_tokenizer(job.source, job.commit)
    return Texts.of(Encoder(tokenizer, job.config.max_seq_len), job.data)


def sketched(job: Job) -> Sketch:
    return sounding.sketch(job, texts(job))


@contextmanager
def unmeasured(_: str) -> Iterator[None]:
    yield


def sounded(job: Job, seconds: float = BRIEF_S) -> Sounding:
    return sounding.sound(sketched(job), unmeasured, seconds)


def base(folder: Path, weights: bytes | None = None, **changes: object) -> Path:
    """The small base model in a folder of its own, with other weights, or none, and another shape.

    Its config is as any llama's, so that it is read by those who load it.
    """
    shutil.copytree(tiny.folder(), folder)
    (folder / "model.safetensors").unlink()
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
    config = TINY_CONFIG | {"architectures": ["LlamaForCausalLM"]} | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("batching", ["tree", "flat", "padded"])
def test_a_second_of_steps_gives_a_pace_by_which_these_very_steps_are_foretold(
    make_job: MakeJob, batching: str
) -> None:
    job = make_job(task="qa", batching=batching, max_train_examples=160)
    for seconds in (1.0, 4.0, 16.0):  # a machine that is busy gets through fewer steps
        found = sounded(job, seconds)
        trained = [seen for seen in found.seen if "train" in seen.phases]
        others = [seen for seen in trained if seen not in found.own]
        if others and any("eval" in seen.phases for seen in found.seen):
            break
    known = sounding.paced(found, evidence.table(job), NOTHING, NOTHING)
    assert len({seen.work.train_passes for seen in trained} | {0}) > 1
    for foretold_s, phase, some in (
        (known.train_s, "train", found.own),
        (known.train_s, "train", others),
        (known.eval_s, "eval", [seen for seen in found.seen if "eval" in seen.phases]),
    ):
        measured_s = sum(seen.phases[phase].runtime_h * 3600 for seen in some)
        assert some
        assert 0.5 < sum(foretold_s(seen.work) for seen in some) / measured_s < 2
    assert known.quality_s_per_example > 0
    assert known.save_s > 0


@pytest.mark.usefixtures("ticking")
def test_what_was_timed_is_what_was_computed_without_the_first_step_of_each_size(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Sequence[Encoded]] = []
    real = Stepper.step

    def step(self: Stepper, examples: Sequence[Encoded]) -> None:
        given.append(examples)
        real(self, examples)

    monkeypatch.setattr(Stepper, "step", step)
    job = make_job(batch_size=4, accumulation_steps=2, batching="flat")
    found = sounded(job)
    assert [len(examples) for examples in given[:3]] == [
        2,
        8,
        32,
    ]  # a quarter, as asked, four times

    def tokens(steps: Sequence[Sequence[Encoded]]) -> Counter[float]:
        return Counter(sum(len(one["input_ids"]) for one in step) for step in steps)

    def counted(seen: Sequence[Seen]) -> Counter[float]:
        return Counter(each.work.useful_tokens for each in seen if each.work.train_steps)

    assert counted(found.seen) == tokens(given[3:])
    assert counted(found.own) == tokens([step for step in given[3:] if len(step) == 8])
    assert {each.work.train_steps for each in found.own} == {1}
    assert found.note == f"{len(given) - 3} steps timed here"


@pytest.mark.usefixtures("ticking")
def test_data_that_is_smaller_than_a_step_is_timed_as_the_step_that_it_makes(
    make_job: MakeJob,
) -> None:
    job = make_job(batch_size=32, accumulation_steps=4, max_train_examples=5, batching="flat")
    found = sounded(job)
    everything = sum(len(one["input_ids"]) for one in texts(job).train)
    assert {each.work.useful_tokens for each in found.own} == {everything}


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize("weights", [None, b"no weights"])
def test_weights_are_never_read(make_job: MakeJob, tmp_path: Path, weights: bytes | None) -> None:
    job = make_job(model=str(base(tmp_path / "base", weights)))
    with pytest.raises(ModelError):
        training.load(job)
    found = sounded(job)
    assert (found.layers, found.of_layers) == (2, 2)
    assert found.own


# A layer of the small base model has 36,864 weights (its attention 64 x 64, twice 64 x 32 and
# 64 x 64 again, its MLP three times 64 x 128), and embeddings and norms of eight layers 132,160.
@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize(("most_b", "layers"), [(2.43e-4, 3), (1e-9, 2), (1.0, 8)])
def test_of_a_large_model_some_layers_stand_for_all_and_it_says_so(
    make_job: MakeJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    most_b: float,
    layers: int,
) -> None:
    monkeypatch.setitem(sounding.LARGEST_B, "cpu", most_b)
    folder = base(tmp_path / "deep", num_hidden_layers=8)
    sketch = sketched(make_job(model=str(folder), lora_layers=4, quality_examples=0))
    names = [name for name, p in sketch.tuner.model.named_parameters() if p.requires_grad]
    adapted = {int(name.partition("layers.")[2].partition(".")[0]) for name in names}
    assert adapted == set(range(layers - round(layers / 2), layers))
    found = sounding.sound(sketch, unmeasured, BRIEF_S)
    assert (found.layers, found.of_layers) == (layers, 8)
    assert found.note.endswith(f", {layers} of 8 layers") == (layers < 8)
    assert {seen.work.layers for seen in found.seen} == {layers}


def test_what_cannot_be_sounded_is_refused_in_one_line(make_job: MakeJob) -> None:
    job = make_job()
    nf4 = replace(job, plan=replace(job.plan, quantization="nf4"))
    for refused, why in ((nf4, "nf4"), (replace(job, shape=None), "shape")):
        with pytest.raises(ConfigError, match=why) as caught:
            sketched(refused)
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("ticking")
def test_each_part_is_inside_of_its_own_phase_and_leaves_no_file(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(tmp_path.iterdir())
    entered: list[str] = []
    done: set[tuple[str, str]] = set()

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        entered.append(name)
        yield
        entered.append("")

    def spied(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*given: Any) -> Any:
            done.add((name, entered[-1] if entered else ""))
            return real(*given)

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((Stepper, "step"), (quality, "measure"), (FineTuner, "save")):
        spied(owner, name)
    sounding.sound(sketched(make_job()), phase, BRIEF_S)
    assert [name for name in entered if name] == ["train", "eval", "quality", "save"]
    assert done == {("step", "train"), ("measure", "quality"), ("save", "save")}
    assert set(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("ticking")
def test_a_request_to_stop_ends_it_before_the_next_step(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(stop, "_asked", asked)
    sketch, real = sketched(make_job()), Stepper.step
    steps: list[int] = []

    def step(self: Stepper, examples: Sequence[Encoded]) -> None:
        real(self, examples)
        steps.append(len(examples))
        if len(steps) == 4:
            asked.append(15)

    monkeypatch.setattr(Stepper, "step", step)
    with pytest.raises(Stopped):
        sounding.sound(sketch, unmeasured, 10 * BRIEF_S)
    assert len(steps) == 4


def test_a_sketch_that_does_not_fit_is_out_of_memory_by_its_name(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    sketch = sketched(make_job())
    monkeypatch.setattr(Stepper, "step", full)
    with pytest.raises(OutOfMemory, match="tiny does not fit"):
        sounding.sound(sketch, unmeasured, BRIEF_S)


def test_a_pace_has_the_seconds_and_watts_of_the_meter_and_else_those_that_it_starts_from(
    make_job: MakeJob,
) -> None:
    start = evidence.table(make_job())
    nothing = Work(
        layers=2, train_gflop=0, train_passes=0, train_steps=0, eval_gflop=0, eval_passes=0,
        quality_examples=0, useful_tokens=0, processed_tokens=0,
    )  # fmt: skip
    step = replace(nothing, train_gflop=1.0, train_passes=1.0, train_steps=1.0)
    seen = [Seen(work=step, phases={"train": pace.amount(2 * start.train_s(step), 0.0)})]
    found = Sounding(
        seen=seen, own=seen, quality_s_per_example=0.0, load_s=3.0, save_s=0.5, layers=2,
        of_layers=2,
    )  # fmt: skip
    known = sounding.paced(found, start, setup=(0.001, 0.02), busy=(0.002, 0.01))
    assert [known.setup_s, known.save_s] == pytest.approx([72 + 3, 0.5])
    assert [known.loading_w, known.busy_w] == pytest.approx([50, 200])
    assert known.train_s(step) == pytest.approx(2 * start.train_s(step))
    unmetered = sounding.paced(found, start, setup=NOTHING, busy=NOTHING)
    assert (unmetered.loading_w, unmetered.busy_w) == (start.loading_w, start.busy_w)
    assert unmetered.quality_s_per_example == start.quality_s_per_example
    assert unmetered.eval_s_per_gflop == start.eval_s_per_gflop
