"""An offer: whether an order fits a device, and what all of its runs take there together."""

import random
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
from fakes import a_cpu, a_gpu
from synthetic import Effects, run

from green_tune import effort, evidence, job, offer, order, plan
from green_tune.config import TrainConfig
from green_tune.effort import Texts
from green_tune.errors import ConfigError
from green_tune.evidence import Known
from green_tune.fit import as_device
from green_tune.footprint import OVERHEAD, Basis
from green_tune.hardware import GPUS, Device, Gpu
from green_tune.offer import Market, Offer
from green_tune.pace import Pace
from green_tune.results import RunRecord
from green_tune.shapes import SHAPES
from green_tune.tokens import Chunks, Encoder

CPU = a_cpu(16)
L4 = as_device(next(gpu for gpu in GPUS if gpu.name == "l4"))
T4 = as_device(next(gpu for gpu in GPUS if gpu.name == "t4"))
G_PER_KWH, PUE = 56.0, 1.5
NOTHING = Known()


def market(command: str, **asked: str) -> Market:
    """An order of a command with the built-in data, in tokens of four characters."""
    made = order.read(command, order.defaults() | asked)
    found = {offer.pair(config): job.find(config, ask_hub=False) for config in made.largest}
    texts = {
        pair: Texts.of(Encoder(Chunks(), each.config.max_seq_len), each.data)
        for pair, each in found.items()
    }
    basis = Basis(g_per_kwh=G_PER_KWH, pue=PUE)
    return Market(order=made, found=found, texts=texts, basis=basis)


def offered(device: Device, command: str = "train", **asked: str) -> Offer:
    return market(command, **asked).offer(device, NOTHING, here=False)


def start_of(made: Offer) -> Pace:
    """What the table says of the pace there."""
    return evidence.table(made.parts[0].job)


@pytest.mark.parametrize("asked", [{}, {"quantization": "none"}, {"precision": "fp32"}], ids=str)
@pytest.mark.parametrize("model", SHAPES)
def test_what_fits_a_gpu_is_what_its_plan_says(model: str, asked: Mapping[str, Any]) -> None:
    wanted = market("train", model=model, **asked)
    config, shape = TrainConfig(model=model, **asked), SHAPES[model]
    planned: dict[Gpu, Any] = {gpu: plan.fits(config, shape, gpu) for gpu in GPUS}
    for gpu, made in planned.items():
        found = wanted.offer(as_device(gpu), NOTHING, here=False)
        assert bool(found.parts) == bool(made) == (not found.refusal), gpu.name
        assert found.memory
        if made:
            own = found.parts[0].job.plan
            assert (own.precision, own.quantization) == (made.precision, made.quantization)
            assert found.memory.total_gib == pytest.approx(own.memory_gib, abs=0.01)
        else:
            assert found.memory.total_gib > 0.9 * 0.95 * gpu.memory_gib
            assert f"{model} does not fit into {gpu.name}" in found.refusal
    assert any(planned.values())


def test_the_parts_of_the_memory_add_up_to_its_total() -> None:
    """7e9 weights of LLaMA in 16 bits, and 16 bytes for each of an adapter's 40e6."""
    found = offered(as_device(GPUS[2]), model="llama-2-7b").memory
    assert found
    parts = [getattr(found, spec.name) for spec in fields(found)]
    assert len(parts) == 6
    assert found.total_gib == pytest.approx(1.06 * sum(parts))
    assert found.weights_gib == pytest.approx(6_738_415_616 * 2 / 2**30)
    each = 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11008))  # layers x rank x (in + out)
    assert found.adapter_gib == found.optimizer_gib == pytest.approx(8 * each / 2**30)


def test_a_run_alone_takes_what_its_quote_says_and_shares_nothing() -> None:
    made = offered(T4)
    (part,) = made.parts
    assert made.amount == part.quote.amount
    assert made.amount.runtime_h * 3600 > start_of(made).setup_s
    kg = made.amount.energy_kwh * G_PER_KWH / 1000 * PUE
    assert made.amount.emissions_kg == pytest.approx(kg)


@pytest.mark.parametrize(
    ("asked", "runs", "sweeps"),
    [
        ({"command": "sweep", "trials": "7"}, 7, 1),
        ({"command": "grid", "task": "qa,sentiment"}, 6, 1),
        ({"command": "grid", "task": "qa", "trials": "5"}, 15, 3),
    ],
)
def test_what_runs_share_is_paid_once(asked: dict[str, str], runs: int, sweeps: int) -> None:
    made = offered(T4, **asked)
    assert sum(part.unit.times for part in made.parts) == pytest.approx(runs)
    each = [part.quote.amount.times(part.unit.times) for part in made.parts]
    assert made.runs.energy_kwh == pytest.approx(sum(one.energy_kwh for one in each))
    start = start_of(made)
    shared_s = start.setup_s + 0.5 * runs + 4.0 * sweeps  # setup, between runs, summaries: assumed
    assert made.session.runtime_h * 3600 == pytest.approx(shared_s)
    kwh = shared_s / 3600 * start.loading_w / 1000
    assert made.session.energy_kwh == pytest.approx(kwh)
    assert made.session.emissions_kg == pytest.approx(kwh * G_PER_KWH / 1000 * PUE)
    assert made.amount == made.runs + made.session
    setups = [part.quote.evidence.phases["setup"].runtime_h * 3600 for part in made.parts]
    assert max(setups) < 1 < start.setup_s


def test_what_lies_between_runs_is_what_earlier_sessions_took() -> None:
    """10 s a run in one session, 30 s in another, on the same device; none on another one."""
    wanted = market("sweep", trials="8")
    start = start_of(wanted.offer(T4, NOTHING, here=False))

    def session(gpu: str, trials: int, between_s: float) -> RunRecord:
        took_h = (start.setup_s + 4.0 + trials * between_s) / 3600
        record = run(random.Random(0), Effects(), gpu=gpu)
        return replace(
            record,
            metrics={f"{OVERHEAD}runtime_h": took_h},
            params={"trials": str(trials)},
            tags={**record.tags, "gpu_type": gpu},
        )

    sessions = [session("t4", 4, 10), session("t4", 9, 30), session("l4", 5, 900)]
    made = replace(wanted, sessions=sessions).offer(T4, NOTHING, here=False)
    assert made.session.runtime_h * 3600 == pytest.approx(start.setup_s + 4.0 + 8 * 20)


def test_work_is_counted_once_for_gpus_that_cut_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    whole = effort.work

    def count(config: TrainConfig, *given: Any, kind: str, **more: Any) -> effort.Work:
        counted.append(kind)
        return whole(config, *given, kind=kind, **more)

    monkeypatch.setattr(effort, "work", count)
    wanted = market("train")
    works = [wanted.offer(as_device(gpu), NOTHING, here=False).work for gpu in GPUS]
    assert counted == ["cuda"]
    assert all(work == works[0] for work in works)
    wanted.offer(CPU, NOTHING, here=True)
    assert counted == ["cuda", "cpu"]


def test_smaller_micro_batches_are_counted_anew() -> None:
    wanted = market("train", task="qa", model="llama-2-7b")
    few, many = (wanted.offer(as_device(gpu), NOTHING, here=False) for gpu in (GPUS[0], GPUS[3]))
    tokens = [each.parts[0].job.plan.micro_batch_tokens for each in (few, many)]
    assert tokens[0] < tokens[1]
    assert few.work.eval_passes > many.work.eval_passes
    assert few.work.useful_tokens == many.work.useful_tokens


def test_all_trials_of_a_sweep_have_the_bits_that_its_largest_needs() -> None:
    """Mistral fits an L4 in 16 bits with rank 16, and not with rank 64."""
    made = offered(L4, "sweep", model="mistral-7b", lora_rank="16,64")
    assert {part.unit.config.lora_rank for part in made.parts} == {16, 64}
    assert {part.job.plan.quantization for part in made.parts} == {"nf4"}
    alone = offered(L4, model="mistral-7b", lora_rank="16")
    assert alone.parts[0].job.plan.quantization == "none"
    assert alone.parts[0].job.config == TrainConfig(model="mistral-7b", lora_rank=16)


def test_cells_without_room_are_left_out_of_a_grid_as_it_leaves_them_out() -> None:
    asked = {"task": "qa", "precision": "fp32", "quantization": "none"}
    both = offered(T4, "grid", model="tiny,llama-2-7b", **asked)
    alone = offered(T4, "grid", model="tiny", **asked)
    assert (both.unfit, alone.unfit, both.refusal) == (("llama-2-7b",), (), "")
    assert both.amount == alone.amount
    refused = offered(T4, "grid", model="llama-2-7b", **asked)
    assert not refused.parts
    assert refused.refusal.startswith("llama-2-7b does not fit into t4")


def test_what_is_not_supported_there_is_refused_with_its_reason_and_no_memory() -> None:
    made = offered(T4, precision="bf16")
    assert made.refusal == "precision=bf16 would be emulated on t4; use fp16 or auto"
    assert (made.parts, made.memory, made.how) == ((), None, "refused")


def test_an_offer_rests_on_the_least_of_what_its_runs_rest_on() -> None:
    """One of two tasks was sounded; the other one has the table alone."""
    wanted = market("grid", task="qa,sentiment")
    first = wanted.offer(T4, NOTHING, here=True)
    of_qa = next(part.job for part in first.parts if part.job.task.name == "qa")
    known = Known(sounded={evidence.sounded(of_qa): (start_of(first), "a probe: 9 steps")})
    made = wanted.offer(T4, known, here=True)
    assert {part.quote.evidence.layer for part in made.parts} == {"probe", "table"}
    assert made.layer == "table"
    assert made.note.startswith("the table of GPUs, t4")
    assert made.note.endswith("a probe: 9 steps")


def test_the_price_of_an_operation_is_the_trainings_own() -> None:
    (part,) = offered(T4).parts
    kwh = part.quote.evidence.phases["train"].energy_kwh
    assert part.g_per_gflop * part.work.train_gflop == pytest.approx(kwh * G_PER_KWH * PUE)


def test_a_gpu_that_the_table_lacks_is_named_with_the_columns_of_a_row() -> None:
    unknown = a_gpu("NVIDIA GeForce GTX 1080", (6, 1))
    with pytest.raises(ConfigError, match=r"GTX 1080 is not in the table .* power_limit_w"):
        market("train").offer(unknown, NOTHING, here=True)


def test_the_first_examples_keep_their_groups() -> None:
    (texts,) = market("train", task="qa").texts.values()
    few = offer.first(texts, 5)
    assert (few.train, few.groups) == (texts.train[:5], texts.groups[:5])
    assert few.validation == texts.validation
    assert offer.first(texts, 0) == offer.first(texts, 10**6) == texts
