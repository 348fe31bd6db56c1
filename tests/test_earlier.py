"""Which runs can stand for a trial, what they cost then, and what earlier studies recommend."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from green_tune import space as spaces
from green_tune.config import TrainConfig, to_text
from green_tune.earlier import as_trial, best_values, fingerprint, usable, usual
from green_tune.footprint import Basis
from green_tune.job import Job
from green_tune.models import Source
from green_tune.results import (
    EVALUATIONS,
    PROCESSES,
    REUSED,
    STOPPED_EARLY,
    STUDY,
    Evaluation,
    RunRecord,
    from_tag,
    to_tag,
)
from green_tune.space import SPACE

MakeJob = Callable[..., Job]
VERSIONS = {"version.torch": "2.13.0", "version.green_tune": "1.0"}
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def an_evaluation(step: int, loss: float, kg: float) -> Evaluation:
    return Evaluation(step=step, progress=step / 4, val_loss=loss, emissions_kg=kg)


COURSE = [an_evaluation(0, 5, 0.3), an_evaluation(2, 3, 0.6), an_evaluation(4, 2, 1.1)]


def a_run(run_id: str = "one", *, day: int = 0, **changed: object) -> RunRecord:
    """A finished training of 3 kWh at 500 g/kWh, of which 0.7 kWh were its setup and quality."""
    whole: dict[str, float] = {"energy_kwh": 3.0, "emissions_kg": 1.5, "runtime_h": 3.0}
    phases = {"setup": 0.5, "train": 2.0, "eval": 0.2, "quality": 0.2, "save": 0.1}
    spent = {
        f"{phase}/{name}": amount
        for phase, amount in phases.items()
        for name in ("energy_kwh", "runtime_h")
    }
    known = {"val_loss": 2.0, "start_val_loss": 5.0, "quality.accuracy": 0.5, "steps": 4.0}
    record = RunRecord(
        run_id=run_id,
        name=run_id,
        kind="train",
        status="FINISHED",
        started=BEGAN + timedelta(days=day),
        metrics=whole | spent | known,
        tags={"energy_valid": "true", EVALUATIONS: to_tag(COURSE)},
    )
    return replace(record, **changed)  # type: ignore[arg-type]


def test_what_only_decides_how_it_is_reckoned_or_kept_leaves_the_fingerprint(
    make_job: MakeJob,
) -> None:
    of_one = fingerprint(make_job(), VERSIONS)
    same = {
        "gpu": "auto", "country": "FRA", "pue": 1.5, "checkpoint_minutes": 0.0, "resume": "never",
        "quality_examples": 0,
    }  # fmt: skip
    assert fingerprint(make_job(**same), VERSIONS) == of_one
    assert fingerprint(make_job(), dict(reversed(VERSIONS.items()))) == of_one


RECKONED = {"gpu", "country", "pue", "checkpoint_minutes", "resume", "quality_examples"}
PLANNED = {"precision", "quantization"}  # the plan has what came of them
FOUND = {"model", "revision", "data"}  # their names decide nothing: what is found there does
OTHERS: dict[str, object] = {
    "task": "qa", "lr_scheduler": "linear", "lora_targets": "attention",
    "batching": "flat", "attention": "padded", "kernels": "torch",
    "gradient_checkpointing": "true", "compile": True, "use_rslora": True, "use_dora": True,
    "lora_dropout": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TrainConfig().__dict__.keys() - RECKONED - FOUND - PLANNED))
def test_every_option_that_decides_a_result_changes_the_fingerprint(
    make_job: MakeJob, name: str
) -> None:
    job = make_job()
    value: Any = getattr(job.config, name)
    other = OTHERS[name] if name in OTHERS else value + 1
    assert other != value
    changed: dict[str, Any] = {name: other}
    another = replace(job, config=replace(job.config, **changed))
    assert fingerprint(another, VERSIONS) != fingerprint(job, VERSIONS)


def test_patience_in_grams_is_another_patience_where_power_is_cleaner(make_job: MakeJob) -> None:
    jobs = [make_job(min_gain_per_g=1.0, country=country) for country in ("100", "50", "100")]
    found = [fingerprint(job, VERSIONS) for job in jobs]
    assert found[0] == found[2] != found[1]
    assert fingerprint(make_job(min_gain_per_g=2.0, country="50"), VERSIONS) == found[0]


def test_other_data_model_device_plan_or_versions_change_the_fingerprint(make_job: MakeJob) -> None:
    job = make_job()
    others = [
        replace(job, data=replace(job.data, train=job.data.train[:-1])),
        replace(job, source=Source(**(job.source.__dict__ | {"name": "other"}))),
        replace(job, commit="abc"),
        replace(job, devices=(replace(job.device, name="other"),)),
        replace(job, rank=replace(job.rank, world=2)),
        replace(job, plan=replace(job.plan, precision="bf16")),
        replace(job, plan=replace(job.plan, quantization="int8")),
    ]
    found = [fingerprint(each, VERSIONS) for each in (job, *others)]
    found.append(fingerprint(job, VERSIONS | {"version.torch": "2.14.0"}))
    assert len(set(found)) == len(found) == 9


def test_a_trial_of_a_sweep_has_the_fingerprint_of_the_same_run_alone(make_job: MakeJob) -> None:
    job, values = make_job().pinned(make_job().config), {"epochs": 2, "lora_rank": 8}
    trial = job.with_config(replace(job.config, **values))  # type: ignore[arg-type]
    assert fingerprint(trial, VERSIONS) == fingerprint(make_job(**values), VERSIONS)


def test_the_newest_usable_run_is_taken() -> None:
    old, new = a_run("old"), a_run("new", day=1)
    assert usable([old, new]) is usable([new, old]) is new
    assert usable([]) is None


def without(metric: str) -> dict[str, float]:
    return {name: figure for name, figure in a_run().metrics.items() if name != metric}


@pytest.mark.parametrize(
    "changed",
    [
        {"status": "FAILED"},
        {"status": "RUNNING"},
        {"tags": dict(a_run().tags) | {"energy_valid": "false"}},
        {"tags": {EVALUATIONS: to_tag(COURSE)}},
        {"tags": dict(a_run().tags) | {STOPPED_EARLY: "after step 2 of 4"}},
        {"tags": dict(a_run().tags) | {REUSED: "another"}},
        {"tags": dict(a_run().tags) | {PROCESSES: "2"}},
        {"tags": {"energy_valid": "true"}},
        {"metrics": without("val_loss")},
        *({"metrics": without(f"{phase}/energy_kwh")} for phase in ("train", "eval", "save")),
    ],
)
def test_what_failed_ended_early_was_not_trusted_or_was_reused_itself_is_not_reused(
    changed: dict[str, object],
) -> None:
    assert usable([a_run(**changed)]) is None  # type: ignore[arg-type]
    older = a_run("older", day=-1)
    assert usable([a_run(**changed), older]) is older  # type: ignore[arg-type]


def test_a_reused_run_costs_what_a_trial_of_it_would_by_the_sweeps_own_intensity() -> None:
    metrics, text = as_trial(a_run(), Basis(g_per_kwh=100, pue=2))
    assert metrics["energy_kwh"] == pytest.approx(2.3)
    assert metrics["runtime_h"] == pytest.approx(2.3)
    assert metrics["emissions_kg"] == pytest.approx(2.3 * 2 * 0.1)
    assert (metrics["val_loss"], metrics["start_val_loss"], metrics["steps"]) == (2.0, 5.0, 4.0)
    assert not [name for name in metrics if "quality" in name or "/" in name]
    course = from_tag(text)
    assert [point.val_loss for point in course] == [5, 2]
    # 1.5 kg were 3 kWh, which are 0.6 kg here; the 0.3 kg before the first step are left out.
    assert [point.emissions_kg for point in course] == pytest.approx([0, 0.8 * 0.4])


def test_a_reused_run_never_costs_less_at_its_end_than_on_the_way() -> None:
    metrics, text = as_trial(a_run(), Basis(g_per_kwh=500))
    assert from_tag(text)[-1].emissions_kg <= metrics["emissions_kg"]


def a_trial(
    loss: float, kg: float, *, study: str = "s", day: int = 0, **values: object
) -> RunRecord:
    params = {"epochs": 1, "lora_rank": 16, "batch_size": 8, "accumulation_steps": 1,
              "learning_rate": 2e-4, "warmup_steps": 5} | values  # fmt: skip
    return RunRecord(
        run_id=f"{study} {loss} {kg}",
        name="one",
        kind="trial",
        status="FINISHED",
        started=BEGAN + timedelta(days=day),
        params={name: to_text(value) for name, value in params.items()},  # type: ignore[arg-type]
        metrics={"val_loss": loss, "emissions_kg": kg},
        tags={STUDY: study},
    )


FRONT = [
    a_trial(9, 1, epochs=1, lora_rank=4),
    a_trial(4, 2, epochs=2, lora_rank=8),
    a_trial(3.5, 6, epochs=3, lora_rank=16),
    a_trial(3, 9, epochs=3, lora_rank=64),
    a_trial(9, 9, epochs=3, lora_rank=32),
]


def ranks(values: Sequence[dict[str, object]]) -> list[object]:
    return [each["lora_rank"] for each in values]


def test_the_knee_the_best_and_the_greenest_of_an_earlier_front_are_recommended() -> None:
    found = best_values(FRONT, SPACE)
    assert ranks(found) == [8, 64, 4]
    assert found[0] == {
        "batch_size": 8, "accumulation_steps": 1, "learning_rate": 2e-4, "warmup_steps": 5,
        "epochs": 2, "lora_rank": 8,
    }  # fmt: skip


def test_one_config_is_recommended_once() -> None:
    assert ranks(best_values(FRONT[:1], SPACE)) == [4]
    assert len(best_values([a_trial(1, 2), a_trial(2, 1)], SPACE)) == 1


def test_nothing_is_recommended_where_there_was_no_study() -> None:
    assert best_values([], SPACE) == []
    assert best_values([replace(FRONT[0], status="FAILED")], SPACE) == []


@pytest.mark.parametrize("dearer", [1.0, 100.0])
def test_the_newest_studys_own_front_is_what_counts(dearer: float) -> None:
    new = [
        a_trial(r.metrics["val_loss"] + 0.5, r.metrics["emissions_kg"] * dearer, study="new",
                day=3, epochs=1, lora_rank=rank)
        for r, rank in zip(FRONT, (64, 32, 16, 8, 4), strict=True)
    ]  # fmt: skip
    assert ranks(best_values([*FRONT, *new], SPACE)) == [32, 8, 64]


def test_what_the_space_does_not_hold_is_not_recommended() -> None:
    _, narrow = spaces.split({"lora_rank": "8..16", "epochs": "1..3"})
    assert ranks(best_values(FRONT, narrow)) == [8]
    _, pinned = spaces.split({"lora_rank": "8", "epochs": "1..3"})
    assert all("lora_rank" not in values for values in best_values(FRONT, pinned))


def test_a_run_that_does_not_say_all_of_it_is_not_recommended() -> None:
    assert best_values([replace(FRONT[0], params={"epochs": "1"})], SPACE) == []


def test_the_usual_is_what_train_does_as_far_as_the_space_holds_it() -> None:
    _, narrow = spaces.split({"lora_rank": "32..64", "epochs": "1"})
    assert usual(narrow) == {
        name: TrainConfig().__dict__[name] for name in narrow if name != "lora_rank"
    }
    assert usual(SPACE).keys() == SPACE.keys()
