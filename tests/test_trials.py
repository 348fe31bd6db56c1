"""Trials as nested runs, with real small trainings, a real meter and a real store."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from green_tune import encoding, loading, tiny, training
from green_tune.bill import overhead
from green_tune.config import SweepConfig
from green_tune.dominance import Bound
from green_tune.errors import RunFailed
from green_tune.job import Job
from green_tune.ledger import Ledger
from green_tune.meter import Meter
from green_tune.query import Query
from green_tune.results import (
    EVALUATIONS,
    REUSED,
    SAVED_KG,
    SESSION_KINDS,
    STOPPED_EARLY,
    STOPPED_WHY,
    STUDY,
    TRIAL,
    Evaluation,
    RunRecord,
    to_tag,
)
from green_tune.space import SPACE
from green_tune.study import Outcome, Study, Trial, open_study
from green_tune.tracking import Tracker
from green_tune.trials import Trials

MakeJob = Callable[..., Job]
VALUES: dict[str, Any] = {
    "batch_size": 8, "accumulation_steps": 1, "learning_rate": 2e-3, "warmup_steps": 0,
    "epochs": 1, "lora_rank": 8,
}  # fmt: skip
MINE = Query(study="s")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep under way, whose trials are run one by one."""

    job: Job
    tracker: Tracker
    study: Study
    ledger: Ledger
    trials: Trials
    parent_id: str
    shown: list[RunRecord]

    def run(self, **values: Any) -> tuple[Outcome, RunRecord]:
        """One trial of the usual values but these; its outcome, and its run."""
        self.study._study.enqueue_trial(encoding.encode(VALUES | values, SPACE))
        trial = self.study.claim(100, self.trials.settle, lambda _: "")
        assert isinstance(trial, Trial)
        config = replace(self.job.config, **trial.values)
        try:
            outcome = self.trials.run(self.job.with_config(config), trial)
        except RunFailed as error:
            self.study.fail(trial, str(error))
            raise
        self.study.tell(trial, outcome)
        return outcome, self.shown[-1]


Begin = Callable[..., Any]


@pytest.fixture
def begin(make_job: MakeJob, store_uri: str, tmp_path: Path) -> Begin:
    """Opens a sweep as the command does."""

    @contextmanager
    def begun(
        *,
        bound: Bound | None = None,
        reuse: bool = True,
        evals: int = 2,
        kind: str = "trial",
        **budgets: float,
    ) -> Iterator[Sweep]:
        job = make_job(country="FRA", quality_examples=0, evals=evals)
        tracker = Tracker(store_uri)
        study = open_study(
            f"sqlite:///{tmp_path / 'optuna.db'}", "s", SPACE, identity={}, sampler="random", seed=0
        )
        shown: list[RunRecord] = []
        with Meter.of(job) as meter:
            meter.open(checked=False)
            sessions = Query(study="s", kinds=SESSION_KINDS)
            ledger = Ledger(
                SweepConfig(**budgets),  # type: ignore[arg-type]
                meter,
                lambda: (tracker.find(MINE), tracker.find(sessions)),
            )
            with (
                tracker.session("worker", "s", study.parent_run, {}, study.others) as (parent, own),
                overhead(own, meter, lambda: None),
            ):
                study.adopt(parent.id)
                trials = Trials(
                    study=study,
                    name="s",
                    tracker=tracker,
                    parent=parent,
                    bench=training.Bench(),
                    meter=meter,
                    ledger=ledger,
                    bound=bound,
                    reuse=reuse,
                    show=shown.append,
                    kind=kind,
                    title=(lambda trial: f"cell {trial.number}") if kind == "cell" else None,
                )
                ledger.look()
                with meter.phase("between"):
                    yield Sweep(
                        job=job,
                        tracker=tracker,
                        study=study,
                        ledger=ledger,
                        trials=trials,
                        parent_id=parent.id,
                        shown=shown,
                    )

    return begun


def artifacts(uri: str, run_id: str, folder: str | None = None) -> set[str]:
    return {file.path for file in MlflowClient(uri).list_artifacts(run_id, folder)}


def test_trials_share_one_base_model_and_the_very_same_config_is_taken_over(
    begin: Begin, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Job] = []
    real = loading._load_base

    def load_base(job: Job, *more: Any) -> Any:
        loaded.append(job)
        return real(job, *more)

    monkeypatch.setattr(loading, "_load_base", load_base)
    with begin() as sweep:
        first, one = sweep.run()
        second, two = sweep.run(lora_rank=16, batch_size=4)
        before = sweep.ledger.spent()
        third, three = sweep.run()
        assert sweep.trials.settle(three.run_id) == third
        assert sweep.ledger.spent().energy_kwh < before.energy_kwh + one.metrics["energy_kwh"]
    assert len(loaded) == 1
    for number, (outcome, record) in enumerate(((first, one), (second, two), (third, three))):
        assert record.parent_id == sweep.parent_id
        assert (record.tags[TRIAL], record.tags[STUDY], record.kind) == (str(number), "s", "trial")
        assert outcome.val_loss == record.metrics["val_loss"]
        assert outcome.emissions_kg == record.metrics["emissions_kg"]
        assert outcome.imputed is None
    assert one.params["lora_rank"] == three.params["lora_rank"] != two.params["lora_rank"]
    assert REUSED not in one.tags.keys() | two.tags.keys()
    quotes = [record.tags.get("quote.evidence") for record in (one, two, three)]
    assert quotes == ["table", "table", None]  # what was taken over was not foretold
    assert ["quote.energy_error" in r.metrics for r in (one, two, three)] == [True, True, False]
    assert three.tags[REUSED] == one.run_id
    for tag in ("base_digest", "model_family"):  # by which it is promoted, and found again
        assert three.tags[tag] == one.tags[tag]
    assert third.val_loss == first.val_loss
    assert 0 < third.emissions_kg <= first.emissions_kg
    assert three.course[-1].val_loss == pytest.approx(one.course[-1].val_loss)
    assert {"energy.csv", "adapter"} <= artifacts(store_uri, one.run_id)
    assert artifacts(store_uri, three.run_id) == set()
    told = sweep.study._study.trials
    assert [trial.values[0] for trial in told] == [first.val_loss, second.val_loss, first.val_loss]
    assert [trial.user_attrs["run_id"] for trial in told] == [r.run_id for r in (one, two, three)]


def test_without_reuse_the_very_same_config_is_measured_again_and_trains_to_the_same_loss(
    begin: Begin, store_uri: str
) -> None:
    with begin() as sweep:
        first, one = sweep.run()
    with begin(reuse=False) as sweep:  # as another session of the study
        second, two = sweep.run()
        assert sweep.trials.settle(two.run_id) == second
        assert sweep.trials.settle("0" * 32) is None
    assert two.parent_id == one.parent_id == sweep.parent_id
    assert two.tags["quote.evidence"] == "same"
    assert two.metrics["quote.energy_kwh"] == pytest.approx(one.metrics["energy_kwh"], rel=1e-9)
    assert two.metrics["quote.energy_error"] == pytest.approx(
        two.metrics["energy_kwh"] / one.metrics["energy_kwh"] - 1
    )
    assert REUSED not in two.tags
    assert second.val_loss == first.val_loss
    assert "energy.csv" in artifacts(store_uri, two.run_id)


GOOD = [
    Evaluation(step=step, progress=step / 10, val_loss=0.1 - step / 1000, emissions_kg=step * 1e-12)
    for step in range(11)
]


def test_a_dominated_trial_is_ended_with_its_reason_and_imputed_for_the_sampler(
    begin: Begin, store_uri: str
) -> None:
    with begin(bound=Bound(evidence=1), evals=6) as sweep:
        tags = {STUDY: "s", TRIAL: "77", EVALUATIONS: to_tag(GOOD)}
        with sweep.tracker.run("trial", "good", tags=tags) as good:
            good.log_metrics({"val_loss": 0.09, "emissions_kg": 1e-11})
        outcome, record = sweep.run()
    assert record.status == "FINISHED"
    assert record.tags[STOPPED_EARLY] == "after step 2 of 6"
    assert record.tags[STOPPED_WHY].startswith("dominated by #77: at best ")
    assert "quote.energy_kwh" in record.metrics
    assert "quote.energy_error" not in record.metrics
    assert [point.step for point in record.course] == [0, 1, 2]
    assert outcome.imputed is not None
    assert outcome.imputed[0] < outcome.val_loss
    assert outcome.val_loss == pytest.approx(record.course[-1].val_loss)
    end_kg = record.course[-1].emissions_kg + float(record.tags[SAVED_KG])
    assert outcome.imputed[1] == pytest.approx(end_kg, rel=1e-3)
    assert sweep.study._study.trials[0].user_attrs["imputed"] == list(outcome.imputed)
    assert "adapter" in artifacts(store_uri, record.run_id)


def test_adapters_on_the_way_that_are_on_the_front_are_kept_and_can_be_loaded(
    begin: Begin, store_uri: str, tmp_path: Path
) -> None:
    with begin(evals=3) as sweep:
        _, one = sweep.run(learning_rate=2e-3)
        _, two = sweep.run(learning_rate=5e-5)  # learns slower at each of its validations
    losses = {point.step: point.val_loss for point in one.course}
    assert losses[0] > losses[2] > losses[4] > losses[6]
    kept = {f"checkpoints/step-{step}" for step in (2, 4)}
    assert artifacts(store_uri, one.run_id, "checkpoints") == kept
    folder = Path(
        MlflowClient(store_uri).download_artifacts(one.run_id, "checkpoints/step-2", str(tmp_path))
    )
    base = AutoModelForCausalLM.from_pretrained(tiny.folder())
    model = PeftModel.from_pretrained(base, str(folder))
    assert vars(model.peft_config["default"])["r"] == 8
    weights = load_file(folder / "adapter_model.safetensors")
    end = MlflowClient(store_uri).download_artifacts(one.run_id, "adapter", str(tmp_path))
    last = load_file(Path(end) / "adapter_model.safetensors")
    assert weights.keys() == last.keys()
    assert any(not weights[name].equal(last[name]) for name in weights)
    # The second is worse in its loss at each moment, and no cheaper, but for chance in a watt.
    beaten = [
        point.step
        for point in two.course[1:-1]
        if not any(
            other.val_loss <= point.val_loss and other.emissions_kg <= point.emissions_kg
            for other in one.course[1:]
        )
    ]
    assert artifacts(store_uri, two.run_id, "checkpoints") == {
        f"checkpoints/step-{step}" for step in beaten
    }


def test_a_budget_that_is_spent_ends_the_trial_under_way_with_its_result_so_far(
    begin: Begin, store_uri: str
) -> None:
    with begin(emissions_budget_kg=1e-12) as sweep:
        outcome, record = sweep.run()
        assert sweep.ledger.refuse(VALUES).startswith("emissions_budget_kg=1e-12: ")
    assert record.status == "FINISHED"
    assert record.tags[STOPPED_EARLY] == "after step 1 of 6"
    assert record.tags[STOPPED_WHY].startswith("emissions_budget_kg=1e-12: ")
    assert SAVED_KG not in record.tags
    assert outcome.val_loss == pytest.approx(record.course[-1].val_loss)
    assert outcome.val_loss < record.course[0].val_loss
    assert outcome.imputed is not None
    assert "adapter" in artifacts(store_uri, record.run_id)


def test_a_trial_that_fails_leaves_the_next_one_as_it_would_be(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training.FineTuner.fit

    def diverge(self: training.FineTuner, *given: Any) -> Any:
        real(self, *given)
        raise RunFailed("the loss is nan")

    with begin(reuse=False) as sweep:
        before, _ = sweep.run()
        with monkeypatch.context() as patch, pytest.raises(RunFailed):
            patch.setattr(training.FineTuner, "fit", diverge)
            sweep.run(lora_rank=32)
        after, _ = sweep.run()
        failed = sweep.tracker.find(MINE)[1]
        assert sweep.trials.settle(failed.run_id) is None
    assert failed.status == "FAILED"
    assert failed.metrics["energy_kwh"] > 0
    assert after.val_loss == before.val_loss


def test_trials_are_foretold_by_those_before_them_without_the_setup_that_all_share(
    begin: Begin,
) -> None:
    with begin() as sweep:
        for size in (2, 4, 8):
            sweep.run(batch_size=size)
        _, record = sweep.run(batch_size=4, epochs=3)
    assert record.tags["quote.evidence"] == "fit"
    assert record.tags["quote.note"].startswith("a fit over 3 runs of tiny here")
    found = record.metrics
    assert found["work.eval_passes"] > 0
    assert found["work.train_steps"] == found["steps"] == 36
    assert 1 / 3 < found["energy_kwh"] / found["quote.energy_kwh"] < 3


def test_cells_of_a_grid_are_foretold_like_trials(begin: Begin) -> None:
    with begin(reuse=False, kind="cell") as grid:
        _, first = grid.run()
        _, again = grid.run()
    assert [record.kind for record in (first, again)] == ["cell", "cell"]
    assert [record.tags["quote.evidence"] for record in (first, again)] == ["table", "same"]
    assert again.metrics["quote.runtime_h"] == pytest.approx(first.metrics["runtime_h"], rel=1e-9)
    assert again.metrics["quote.runtime_error"] == pytest.approx(
        again.metrics["runtime_h"] / first.metrics["runtime_h"] - 1
    )
