"""What a forecast rests on: made-up runs of a known pace, and which of them count."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest

from green_tune import evidence, hardware, pace, peaks
from green_tune import job as jobs
from green_tune.config import TrainConfig
from green_tune.effort import Work
from green_tune.errors import ConfigError
from green_tune.evidence import Evidence, Known
from green_tune.fit import as_device
from green_tune.hardware import Device
from green_tune.job import Job
from green_tune.pace import Pace
from green_tune.results import (
    FINGERPRINT,
    OUT_OF_GAIN,
    PROCESSES,
    REUSED,
    STOPPED_EARLY,
    STOPPED_WHY,
    RunRecord,
)

MakeJob = Callable[..., Job]
WORK = Work(
    layers=2.0, train_gflop=100.0, train_passes=10.0, train_steps=5.0, eval_gflop=30.0,
    eval_passes=6.0, quality_examples=20.0, useful_tokens=1000.0, processed_tokens=1200.0,
)  # fmt: skip
TRUE = Pace(
    train_s_per_gflop=0.5, train_s_per_layer_pass=0.1, train_s_per_layer_step=0.2,
    eval_s_per_gflop=0.25, eval_s_per_layer_pass=0.05, quality_s_per_example=0.3,
    setup_s=9.0, save_s=4.5, busy_w=200.0, loading_w=50.0,
)  # fmt: skip
TRAIN_S = 54.0  # of that pace and work, as in the test of `pace`
MINE, OTHER = "this config", "another config"
NUMBERS = count()
Change = Mapping[str, Any]


def times(true: Pace, factor: float) -> Pace:
    """So many times as slow a training."""
    return replace(true, **{name: getattr(true, name) * factor for name in pace.TRAIN})


def ran(job: Job, true: Pace = TRUE, fingerprint: str = OTHER, **change: Any) -> RunRecord:
    """A run of the job at a pace, whole and trusted; `change` adds to its fields or replaces."""
    spent = {
        f"{phase}/{name}": getattr(amount, name)
        for phase, amount in true.phases(WORK).items()
        for name in ("runtime_h", "energy_kwh")
    }
    record = RunRecord(
        run_id=f"{next(NUMBERS):032x}",
        name="a run",
        kind="train",
        status="FINISHED",
        started=datetime(2026, 11, 22, tzinfo=UTC),
        params=job.config.to_params() | job.plan.to_params(),
        metrics=WORK.to_metrics() | spent,
        tags={
            "gpu_type": job.device.gpu_type,
            "device": str(job.device),
            "base_model": job.source.name,
            evidence.FAMILY: job.family,
            "energy_valid": "true",
            FINGERPRINT: fingerprint,
        },
    )
    return changed(record, change)


def changed(record: RunRecord, change: Change) -> RunRecord:
    """Mappings are joined, other fields replaced; None takes an entry away."""
    fields = dict(change)
    for name, new in change.items():
        if isinstance(new, Mapping):
            both = {**getattr(record, name), **new}
            fields[name] = {key: value for key, value in both.items() if value is not None}
    return replace(record, **fields)


def find(
    job: Job, records: Sequence[RunRecord] = (), kind: str = "train", **known: Any
) -> Evidence:
    return evidence.find(job, WORK, Known(records=records, **known), MINE, kind=kind)


def seconds(found: Evidence, phase: str = "train") -> float:
    return found.phases[phase].runtime_h * 3600


def on(name: str, device: Device | None = None) -> Job:
    """A job on a GPU of the table, or on another."""
    row = next(gpu for gpu in hardware.GPUS if gpu.name == name)
    return jobs.find(TrainConfig()).on((device or as_device(row),))


def test_the_best_that_is_known_comes_first(make_job: MakeJob) -> None:
    job = make_job()
    known: dict[str, Any] = {}
    assert find(job).layer == "table"
    known["sounded"] = {evidence.sounded(job): (times(TRUE, 3), "a probe")}
    probe = find(job, **known)
    assert (probe.layer, probe.note, probe.runs) == ("probe", "a probe", ())
    assert probe.phases == times(TRUE, 3).phases(WORK)
    records = [ran(job, times(TRUE, 2)) for _ in range(evidence.FEWEST)]
    fit = find(job, records, **known)
    assert (fit.layer, fit.runs) == ("fit", tuple(record.run_id for record in records))
    assert fit.note == "a fit over 3 runs of tiny here"
    records.append(ran(job, times(TRUE, 5), MINE))
    same = find(job, records, **known)
    assert (same.layer, same.runs) == ("same", (records[-1].run_id,))
    assert same.note == "this very config, measured here once before"
    assert seconds(same) == pytest.approx(5 * TRAIN_S)


def test_the_table_says_what_is_assumed_of_a_cpu_and_stated_of_a_gpu(make_job: MakeJob) -> None:
    job = make_job()
    assert job.shape
    found = find(job)
    assumed = peaks.pace_of_cpu(job.device, job.shape, os.cpu_count() or 1)
    assert found.phases == assumed.phases(WORK)
    assert "assumed" in found.note
    gpu = on("l4")
    assert gpu.shape
    assert gpu.device.gpu
    stated = peaks.pace(gpu.device.gpu, gpu.plan.precision, gpu.plan.quantization, gpu.shape)
    assert find(gpu).phases == stated.phases(WORK)
    assert "l4" in find(gpu).note


def test_a_gpu_that_nobody_knows_is_refused_until_it_was_probed() -> None:
    strange = Device(kind="cuda", name="Mystery 9000", memory_gib=24.0, capability=(8, 0))
    job = on("l4", strange)
    with pytest.raises(ConfigError, match=r"Mystery 9000 is not in the table .* to add one"):
        find(job)
    probed = find(job, sounded={evidence.sounded(job): (TRUE, "a probe")})
    assert probed.layer == "probe"


def test_the_same_config_takes_the_mean_of_what_it_took(make_job: MakeJob) -> None:
    job = make_job()
    records = [ran(job, times(TRUE, by), MINE) for by in (1, 2, 6)]
    found = find(job, records)
    assert found.note == "this very config, measured here 3 times before"
    assert seconds(found) == pytest.approx(3 * TRAIN_S)
    assert found.phases["train"].energy_kwh == pytest.approx(3 * TRAIN_S * 200 / 3.6e6)
    assert seconds(found, "setup") == pytest.approx(9.0)


def test_a_fit_is_by_the_runs_and_a_probe_by_what_it_saw(make_job: MakeJob) -> None:
    job = make_job()
    runs = [ran(job, replace(times(TRUE, 2), setup_s=s, busy_w=300.0)) for s in (5, 7, 90)]
    found = find(job, runs, sounded={evidence.sounded(job): (TRUE, "a probe")})
    assert seconds(found) == pytest.approx(2 * TRAIN_S)
    assert found.phases["train"].energy_kwh == pytest.approx(2 * TRAIN_S * 300 / 3.6e6)
    assert seconds(found, "setup") == pytest.approx(7.0)


def test_a_probe_that_was_asked_for_is_not_passed_over_for_runs(make_job: MakeJob) -> None:
    job = make_job()
    records = [ran(job, fingerprint=MINE) for _ in range(4)]
    sounded = {evidence.sounded(job): (times(TRUE, 3), "a probe")}
    assert find(job, records, sounded=sounded).layer == "same"
    assert find(job, records, sounded=sounded, insists=True).layer == "probe"
    assert find(job, records, insists=True).layer == "same"  # there is no probe of it


NOT_WHOLE: list[Change] = [
    {"status": "FAILED"},
    {"status": "KILLED"},
    {"status": "RUNNING"},
    {"tags": {STOPPED_EARLY: "true", STOPPED_WHY: "it is dominated"}},
    {"tags": {STOPPED_EARLY: "true"}},
    {"tags": {REUSED: "another run"}},
    {"tags": {PROCESSES: "2"}},
    {"tags": {"green_tune.sessions": "2"}},  # resumed
    {"tags": {"energy_flags": "paused for 2.0 s; shared with other measured runs, split equally"}},
    {"tags": {"energy_valid": "false"}},
    {"tags": {"energy_valid": None}},
    {"metrics": {"train/energy_kwh": None}},
]
ELSEWHERE: list[Change] = [
    {"tags": {"device": "another CPU, 64 threads, 8 GiB"}},
    {"tags": {"device": None}},
    {"tags": {"gpu_type": "t4"}},
]
UNLIKE: list[Change] = [
    {"params": {"plan.precision": "bf16"}},
    {"params": {"plan.quantization": "nf4"}},
    {"params": {"plan.batching": "padded"}},
    {"params": {"plan.checkpointing": "true"}},
    {"params": {"use_dora": "true"}},
    {"params": {"plan.precision": None}},
    {"metrics": {"work.train_gflop": None}},
    {"tags": {"base_model": "gemma-2b", evidence.FAMILY: "gemma"}},
]


@pytest.mark.parametrize("change", [*NOT_WHOLE, *ELSEWHERE, *UNLIKE], ids=str)
def test_a_run_that_is_not_alike_makes_no_fit(make_job: MakeJob, change: Change) -> None:
    job = make_job()
    two = [ran(job), ran(job)]
    assert find(job, [*two, ran(job)]).layer == "fit"
    assert find(job, [*two, ran(job, **change)]).layer == "table"


@pytest.mark.parametrize("change", [*NOT_WHOLE, *ELSEWHERE], ids=str)
def test_a_run_that_was_not_whole_or_elsewhere_is_not_the_same(
    make_job: MakeJob, change: Change
) -> None:
    job = make_job()
    assert find(job, [ran(job, fingerprint=MINE)]).layer == "same"
    assert find(job, [ran(job, fingerprint=MINE, **change)]).layer == "table"


def test_a_run_that_was_scored_on_more_examples_is_not_the_same(make_job: MakeJob) -> None:
    job = make_job(quality_examples=8)
    more = make_job(quality_examples=64)
    assert find(job, [ran(more, fingerprint=MINE)]).layer == "table"


def test_a_run_that_ended_by_its_own_config_counts(make_job: MakeJob) -> None:
    job = make_job()
    tags = {STOPPED_EARLY: "true", STOPPED_WHY: f"{OUT_OF_GAIN} than min_gain_per_g=1"}
    assert find(job, [ran(job, fingerprint=MINE, tags=tags)]).layer == "same"


def test_gpus_of_the_table_are_one_by_their_type_and_others_by_their_name() -> None:
    job = on("l4")
    renamed: Change = {"tags": {"device": "NVIDIA L4 of another host, 22 GiB"}}
    assert find(job, [ran(job, fingerprint=MINE, **renamed)]).layer == "same"
    assert find(job, [ran(on("t4"), fingerprint=MINE)]).layer == "table"
    strange = [
        on("l4", Device(kind="cuda", name=name, memory_gib=24.0, capability=(8, 0)))
        for name in ("Mystery 9000", "Mystery 1")
    ]
    assert {job.device.gpu_type for job in strange} == {"unknown"}
    assert find(strange[0], [ran(strange[0], fingerprint=MINE)]).layer == "same"
    with pytest.raises(ConfigError):
        find(strange[0], [ran(strange[1], fingerprint=MINE)])


def test_the_family_counts_only_where_there_are_too_few_of_the_base_model(
    make_job: MakeJob,
) -> None:
    job = make_job()
    sounded = {evidence.sounded(job): (TRUE, "a probe")}
    cousins = [ran(job, times(TRUE, 4), tags={"base_model": "llama-2-7b"}) for _ in range(3)]
    own = [ran(job, times(TRUE, 2)) for _ in range(3)]
    few = find(job, [*cousins, *own[:2]], sounded=sounded)
    assert (few.note, len(few.runs)) == ("a fit over 5 runs of llama models here", 5)
    assert 2 * TRAIN_S < seconds(few) < 4 * TRAIN_S
    enough = find(job, [*own, *cousins], sounded=sounded)
    assert enough.runs == tuple(record.run_id for record in own)
    assert seconds(enough) == pytest.approx(2 * TRAIN_S)


def test_only_the_newest_runs_make_a_fit(make_job: MakeJob) -> None:
    job = make_job()
    sounded = {evidence.sounded(job): (TRUE, "a probe")}
    old = [ran(job, times(TRUE, 9)) for _ in range(10)]
    new = [ran(job) for _ in range(evidence.NEWEST)]
    found = find(job, [*old, *new], sounded=sounded)
    assert found.runs == tuple(record.run_id for record in new)
    assert seconds(found) == pytest.approx(TRAIN_S)


@pytest.mark.parametrize("kind", ["trial", "cell", "repeat"])
def test_a_trials_setup_is_not_that_of_a_run_alone(make_job: MakeJob, kind: str) -> None:
    job = make_job()
    sounded = {evidence.sounded(job): (replace(TRUE, save_s=1.0), "a probe")}
    alone = [ran(job, times(TRUE, 2), MINE) for _ in range(3)]
    found = find(job, alone, kind, sounded=sounded)
    assert found.layer == "fit"  # the same config, but with a setup of its own
    assert seconds(found) == pytest.approx(2 * TRAIN_S)
    assert seconds(found, "setup") == pytest.approx(evidence.SETUP_OF_A_TRIAL_S)
    assert seconds(found, "save") == pytest.approx(1.0)
    quick = replace(times(TRUE, 2), setup_s=0.02, save_s=0.3)
    trials = [ran(job, quick, kind="trial") for _ in range(2)]
    found = find(job, [*alone, *trials], kind, sounded=sounded)
    assert seconds(found, "setup") == pytest.approx(0.02)
    assert seconds(found, "save") == pytest.approx(0.3)
    assert seconds(find(job, [*alone[:2], *trials]), "setup") == pytest.approx(9.0)
    trial = ran(job, quick, MINE, kind="trial")
    assert find(job, [trial], kind).layer == "same"
    assert find(job, [trial]).layer == "table"


def test_answers_are_as_long_as_those_of_the_same_task(make_job: MakeJob) -> None:
    job, other = make_job(task="sentiment"), make_job(task="summarization")
    long = [ran(other, replace(TRUE, quality_s_per_example=5.0)) for _ in range(5)]
    short = ran(job, replace(TRUE, quality_s_per_example=0.1))
    assert seconds(find(job, [*long, short]), "quality") == pytest.approx(0.1 * 20)
    of_table = evidence.table(job).quality_s_per_example
    assert seconds(find(job, long), "quality") == pytest.approx(of_table * 20)


def noted(job: Job, true: Pace, note: str) -> RunRecord:
    """A sounding as a store holds it."""
    return RunRecord(
        run_id=f"{next(NUMBERS) + 2**124:032x}",
        name="a probe",
        kind="probe",
        status="FINISHED",
        started=datetime(2026, 11, 22, tzinfo=UTC),
        metrics=true.to_metrics(),
        tags=evidence.tags_of_probe(job, note),
    )


@pytest.mark.parametrize("figure", [0.0, 1e200])
def test_a_probe_of_no_machine_is_passed_over(make_job: MakeJob, figure: float) -> None:
    job = make_job()
    odd = noted(job, TRUE, "odd")
    odd = replace(odd, metrics=dict.fromkeys(odd.metrics, figure))
    assert find(job, [odd]).layer == "table"
    assert find(job, [noted(job, TRUE, "sane"), odd]).layer == "probe"


def test_the_newest_probe_of_the_store_is_found_again(make_job: MakeJob) -> None:
    job = make_job()
    old, new = noted(job, TRUE, "10 steps"), noted(job, times(TRUE, 2), "20 steps")
    found = find(job, [old, new])
    assert found.layer == "probe"
    assert seconds(found) == pytest.approx(2 * TRAIN_S)
    assert found.note == f"a probe of run {new.run_id[:8]}: 20 steps"
    now = {evidence.sounded(job): (times(TRUE, 7), "just now")}
    assert seconds(find(job, [old, new], sounded=now)) == pytest.approx(7 * TRAIN_S)


def test_a_probe_holds_for_other_sizes_and_for_no_other_task_adapter_or_machine(
    make_job: MakeJob,
) -> None:
    probe = noted(make_job(), TRUE, "10 steps")
    for alike in ({"batch_size": 2}, {"epochs": 3}, {"lora_rank": 4}):
        assert find(make_job(**alike), [probe]).layer == "probe"
    unlike: list[dict[str, Any]] = [
        {"task": "summarization"}, {"lora_targets": "attention"}, {"lora_layers": 1},
        {"use_dora": True}, {"batching": "padded"}, {"gradient_checkpointing": "true"},
        {"model": "tiny-wide"},
    ]  # fmt: skip
    for options in unlike:
        assert find(make_job(**options), [probe]).layer == "table"
    elsewhere = changed(probe, {"tags": {"device": "another CPU, 8 GiB"}})
    broken = changed(probe, {"metrics": {"pace.setup_s": None}})
    for record in (elsewhere, broken):
        assert find(make_job(), [record]).layer == "table"


def test_what_runs_share_is_by_whole_runs_alone(make_job: MakeJob) -> None:
    job = make_job()
    trials = [ran(job, replace(TRUE, setup_s=0.02), kind="trial") for _ in range(3)]
    assert evidence.usual(job, Known(records=trials)) == evidence.table(job)
    alone = ran(job, replace(TRUE, setup_s=11.0))
    assert evidence.usual(job, Known(records=[*trials, alone])).setup_s == pytest.approx(11.0)
