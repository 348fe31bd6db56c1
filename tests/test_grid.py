"""What a grid consists of, in which order, what has no room, and what it says of itself."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import a_gpu

from entrypoints import grid as entrypoint
from entrypoints.grid import OutOfBudget, Shelf, Worker
from entrypoints.sweep import Host
from green_tune import grid as grids
from green_tune import tally
from green_tune.budget import ZERO, Amount
from green_tune.config import SweepConfig, TrainConfig
from green_tune.earlier import as_trial
from green_tune.errors import ConfigError, DataError, DoesNotFit, ModelError, RunFailed, UsageError
from green_tune.footprint import Basis
from green_tune.grid import Cell, Grid, Pair, Prepared
from green_tune.job import Job
from green_tune.ledger import Ledger, Rate
from green_tune.models import Source
from green_tune.query import Query
from green_tune.results import (
    EVALUATIONS,
    RETRY_OF,
    STOPPED_EARLY,
    STOPPED_WHY,
    STUDY,
    UNFIT,
    Evaluation,
    RunRecord,
    to_tag,
)
from green_tune.space import Space
from green_tune.study import Outcome, Trial, open_study
from green_tune.sweep import everything_admitted, nothing_settled, run_sweep
from green_tune.tally import Tally
from green_tune.tracking import Tracker
from green_tune.training import Bench
from green_tune.trials import Trials

SMALL = {"gpu": "cpu", "max_train_examples": "8", "max_eval_examples": "4"}
T4 = replace(a_gpu("Tesla T4", (7, 5)), memory_gib=15.0)
START = datetime(2026, 11, 23, tzinfo=UTC)


def refusal(**asked: str) -> str:
    with pytest.raises(UsageError) as caught:
        Grid.parse(SMALL | asked)
    return str(caught.value)


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"model": "tiny,,tiny-wide"}, "model=tiny,,tiny-wide lacks a value"),
        ({"task": ""}, "task= lacks a value"),
        ({"task": "qa, qa"}, "task=qa, qa names qa twice"),
        ({"task": "qa,poems"}, "task=poems is unknown; known: qa, "),
        ({"model": "tiny,gemma"}, "model=gemma is unknown; known: tiny, tiny-wide, "),
        ({"model": "gemma-2b,google/gemma-2b"}, "model=gemma-2b and google/gemma-2b are the same"),
        ({"seed": "0,one"}, "seed=one is not a whole number"),
        ({"seed": "0,00"}, "seed=0,00 names 0 twice"),
        ({"seed": "-1"}, "seed=-1 is too small"),
        ({"batch_size": "2..8"}, "batch_size=2..8 is searched, and each cell is one run; give one"),
        ({"epochs": "1,2"}, "epochs=1,2 is searched, and each cell is one run; give one value"),
        ({"repeats": "2"}, "repeats=2 are of a sweep's best trials; give trials=10"),
        ({"trials": "0"}, "trials=0 is too small"),
        ({"learning_rate": "fast"}, "learning_rate=fast is not a number"),
    ],
)
def test_what_cannot_be_a_grid_is_refused_in_one_line(asked: dict[str, str], line: str) -> None:
    text = refusal(**asked)
    assert text.startswith(line)
    assert "\n" not in text


def test_auto_is_what_train_does_or_where_a_cell_is_a_sweep_what_sweep_does() -> None:
    once, searched = (Grid.parse(SMALL | {"trials": number}) for number in ("1", "4"))
    pair = Pair("tiny", "qa")
    config, varied = once.split(pair)
    assert (config.batch_size, config.quality_examples, varied) == (8, 64, {})
    config, varied = searched.split(pair)
    assert config.quality_examples == 0
    assert {name: str(dim) for name, dim in varied.items()}["batch_size"] == "2..32"


def test_a_task_has_its_own_folder_of_data_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "data" / "qa").mkdir(parents=True)
    (tmp_path / "sample" / "qa").mkdir(parents=True)
    grid = Grid.parse({"data": "data"})
    assert grid.asked(Pair("tiny", "qa"))["data"] == "data/qa"
    assert grid.asked(Pair("tiny", "sentiment"))["data"] == "data"
    assert Grid.parse({}).asked(Pair("tiny", "qa"))["data"] == "sample"


def prepared(**asked: str) -> Prepared:
    return Prepared.of(Grid.parse(SMALL | asked))


def test_the_cheapest_cells_come_first_whatever_the_order_of_the_lists() -> None:
    asked = {"model": "tiny-wide,tiny", "task": "qa,sentiment", "seed": "3,1"}
    cells = prepared(**asked).cells()
    assert cells[:2] == [Cell("tiny", "sentiment", 3), Cell("tiny", "sentiment", 1)]
    assert [cell.pair for cell in cells[::2]] == [
        ("tiny", "sentiment"), ("tiny-wide", "sentiment"), ("tiny", "qa"), ("tiny-wide", "qa")
    ]  # fmt: skip
    turned = prepared(**asked | {"model": "tiny,tiny-wide", "task": "sentiment,qa"})
    assert turned.cells() == cells


def test_modelled_work_goes_with_parameters_epochs_and_trials() -> None:
    once, thrice = prepared(task="qa"), prepared(task="qa", epochs="3")
    pair = Pair("tiny", "qa")
    assert thrice.works[pair] == pytest.approx(3 * once.works[pair])
    five = prepared(task="qa", trials="5", epochs="1..3")
    assert five.works[pair] == pytest.approx(5 * 2 * once.works[pair])
    job = once.found[pair]
    assert isinstance(job, Job)
    assert job.shape is not None
    chars = sum(len(each.prompt) + len(each.completion) for each in job.data.train)
    assert once.works[pair] == pytest.approx(job.shape.parameters * chars / 4)


def test_a_grid_is_the_same_with_its_lists_in_another_order_and_with_more_seeds() -> None:
    one = prepared(model="tiny,tiny-wide", task="qa,sentiment", batch_size="8")
    same = prepared(model="tiny-wide,tiny", task="sentiment,qa", batch_size="08", seed="0,1,2,3")
    assert one.identity() == same.identity()
    for other in ({"epochs": "2"}, {"model": "tiny"}, {"trials": "3"}, {"max_train_examples": "7"}):
        asked = {"model": "tiny,tiny-wide", "task": "qa,sentiment"} | other
        assert prepared(**asked).identity() != one.identity()


def test_all_models_share_the_examples_of_a_task() -> None:
    found = prepared(model="tiny,tiny-wide", task="qa").found.values()
    one, other = (job.data for job in found if isinstance(job, Job))
    assert one is other


@pytest.fixture
def on_a_t4(monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """A grid of a model that has room on a T4, and of one that has none without 4-bit weights."""

    def commit(source: Source, revision: str) -> str:
        assert source.kind != "hub", "the hub was asked"
        return ""

    monkeypatch.setattr("green_tune.job.nvml.find_gpus", lambda: [T4])
    monkeypatch.setattr("green_tune.job._commit", commit)
    return prepared(
        gpu="t4", model="llama-2-7b,tiny", task="qa,sentiment", seed="0,1", quantization="none"
    )


def test_what_does_not_fit_is_found_before_anything_is_looked_for_and_is_one_cell_of_each_task(
    on_a_t4: Prepared,
) -> None:
    errors = [found for found in on_a_t4.found.values() if isinstance(found, DoesNotFit)]
    assert len(errors) == 2
    assert all(str(e).startswith("llama-2-7b does not fit into Tesla T4, 15 GiB") for e in errors)
    cells = on_a_t4.cells()
    assert cells[:2] == [Cell("llama-2-7b", "qa", 0), Cell("llama-2-7b", "sentiment", 0)]
    assert {cell.model for cell in cells[2:]} == {"tiny"}
    assert len(cells) == 6
    assert on_a_t4.ground.device.gpu_type == "t4"


def test_a_grid_none_of_whose_cells_fits_still_knows_its_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("green_tune.job.nvml.find_gpus", lambda: [T4])
    found = prepared(gpu="t4", model="llama-2-7b", task="qa", quantization="none")
    assert found.ground.device.gpu_type == "t4"
    assert [found.works[pair] for pair in found.found] == [0]


def test_a_cell_that_does_not_fit_is_a_run_that_says_so_once_beside_those_that_are_measured(
    on_a_t4: Prepared, store_uri: str, tmp_path: Path
) -> None:
    tracker = Tracker(store_uri)
    said: list[str] = []
    study = open_study(
        f"sqlite:///{tmp_path / 'optuna.db'}",
        "g",
        on_a_t4.grid.dimensions,
        identity=on_a_t4.identity(),
    )
    for _ in range(2):  # a resume does not try again
        total = study.enqueue(cell._asdict() for cell in on_a_t4.cells())
        with tracker.session(
            "worker of g", "g", study.parent_run, {}, study.others, study.adopt, kind="grid"
        ) as (parent, _mine):
            worker = a_worker(on_a_t4, tracker, study, parent, said.append)
            run_sweep(study, total, worker.run, nothing_settled, everything_admitted, alike=False)
    records = tracker.find(Query(study="g", kinds=("cell",)))
    assert [record.name for record in records] == [
        "llama-2-7b qa seed 0", "llama-2-7b sentiment seed 0"
    ]  # fmt: skip
    for record in records:
        assert (record.status, record.kind, record.metrics) == ("FAILED", "cell", {})
        assert record.tags[UNFIT].startswith("llama-2-7b does not fit into Tesla T4, 15 GiB: needs")
        assert (record.tags["base_model"], record.tags["gpu_type"]) == ("llama-2-7b", "t4")
        assert record.tags["device"] == "Tesla T4, 15 GiB"
        assert record.params["seed"] == "0"
        assert record.parent_id == study.parent_run
    assert said == ["llama-2-7b qa: does not fit", "llama-2-7b sentiment: does not fit"]
    assert tracker.get(study.parent_run).kind == "grid"
    assert study.missing(total) == 0
    table = tally.table(Shelf(tracker=tracker, name="g", prepared=on_a_t4).tally(""))
    assert table.count("does not fit") == 2


def a_worker(
    found: Prepared, tracker: Tracker, study: Any, parent: Any, say: Callable[[str], None]
) -> Worker:
    """One whose measured cells are formulas: the T4 is not there."""
    trials = Trials(
        study=study, name="g", tracker=tracker, parent=parent, bench=Bench(), meter=none(),
        ledger=none(), bound=None, reuse=False, show=lambda record: None, kind="cell",
        title=lambda trial: grids.name_of(Cell(**trial.values)),
    )  # fmt: skip

    def measured(job: Job, trial: Trial) -> Outcome:
        assert job.config.seed == trial.values["seed"]
        return Outcome(val_loss=1.0, emissions_kg=1.0)

    trials.run = measured  # type: ignore[method-assign]
    shelf = Shelf(tracker=tracker, name="g", prepared=found)
    return Worker(
        shelf=shelf, study=study, trials=trials, bench=Bench(), host=none(), meter=none(), say=say
    )


def none() -> Any:
    return SimpleNamespace()


def test_a_base_that_cannot_be_loaded_fails_its_own_cell_alone(
    store_uri: str, tmp_path: Path
) -> None:
    found = prepared(task="qa", seed="0,1")
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    study = open_study(url, "g", found.grid.dimensions, identity={})
    worker = a_worker(found, Tracker(store_uri), study, none(), lambda text: None)

    def first_is_broken(job: Job, trial: Trial) -> Outcome:
        if job.config.seed == 0:
            raise ModelError("weights are missing")
        return Outcome(val_loss=1.0, emissions_kg=1.0)

    worker.trials.run = first_is_broken  # type: ignore[method-assign]
    total = study.enqueue(cell._asdict() for cell in found.cells())
    ended = run_sweep(study, total, worker.run, nothing_settled, everything_admitted, alike=False)
    assert (ended, study.missing(total), study.failures()) == ("", 0, None)


def test_cells_that_all_fail_do_not_end_a_grid(tmp_path: Path) -> None:
    found = prepared(task="qa", seed="0,1,2,3,4")
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    study = open_study(url, "g", found.grid.dimensions, identity={})
    total = study.enqueue(cell._asdict() for cell in found.cells())

    def fail(trial: Trial) -> Outcome:
        raise RunFailed("diverged")

    ended = run_sweep(study, total, fail, nothing_settled, everything_admitted, alike=False)
    assert (ended, study.failures()) == ("", ["diverged"] * 5)


def a_run(cell: Cell, number: int = 0, **more: Any) -> RunRecord:
    """A finished cell of 1 + its seed / 10 nats, a gram, 2 Wh and a quarter of an hour."""
    point = Evaluation(step=4, progress=more.pop("progress", 1.0), val_loss=1.0, emissions_kg=0.001)
    figures = {"emissions_kg": 0.001, "energy_kwh": 0.002, "runtime_h": 0.25,
               "val_loss": 1 + cell.seed / 10, "energy_modelled_share": 1.0}  # fmt: skip
    tags = {EVALUATIONS: to_tag([point]), "base_model": cell.model} | more.pop("tags", {})
    known: dict[str, Any] = {
        "run_id": f"{number:032x}",
        "name": grids.name_of(cell),
        "kind": "cell",
        "status": "FINISHED",
        "started": START + timedelta(minutes=number),
        "params": {name: str(value) for name, value in cell._asdict().items()},
        "metrics": figures,
    }
    return RunRecord(**known | more, tags=tags)


def test_a_cell_is_expected_to_cost_its_work_times_the_largest_rate_so_far() -> None:
    works = {("tiny", "qa"): 2.0, ("tiny-wide", "qa"): 10.0}
    assert Rate.of(works, 1, ()).expected({"model": "tiny", "task": "qa"}) == ZERO
    records = [a_run(Cell("tiny", "qa", 0)), a_run(Cell("tiny-wide", "qa", 0))]
    rate = Rate.of(works, 1, records)
    expected = rate.expected({"model": "tiny-wide", "task": "qa"})
    assert expected == Amount(emissions_kg=0.005, energy_kwh=0.01, runtime_h=1.25)
    assert rate.expected({"model": "tiny", "task": "sentiment"}) == ZERO


def test_a_cell_of_many_trials_is_expected_to_cost_as_many_as_it_has() -> None:
    works = {("tiny", "qa"): 20.0}
    records = [a_run(Cell("tiny", "qa", 0), number, kind="trial") for number in range(2)]
    half = a_run(Cell("tiny", "qa", 0), 2, kind="trial", progress=0.5, tags={STOPPED_EARLY: "x"})
    for found in (records, [replace(half, metrics={**half.metrics, "energy_kwh": 0.001})]):
        expected = Rate.of(works, 10, found).expected({"model": "tiny", "task": "qa"})
        assert expected is not None
        assert expected.energy_kwh == pytest.approx(10 * 0.002)


def test_the_budget_of_a_part_is_the_wholes() -> None:
    meter: Any = SimpleNamespace(spent_kg=1.0, spent_kwh=2.0, basis=Basis(g_per_kwh=500.0))
    elsewhere = a_run(Cell("tiny", "qa", 0))
    config = SweepConfig(energy_budget_kwh=2.5)
    whole = Ledger(config, meter, lambda: ([elsewhere], []))
    part = Ledger(config, meter, lambda: ([], []), within=whole)
    whole.look()
    part.look()
    assert part.spent().energy_kwh == whole.spent().energy_kwh == pytest.approx(2.002)
    assert part.refuse({}) == ""
    assert replace(part.spent(), runtime_h=0) == replace(whole.spent(), runtime_h=0)


CELLS = [Cell(model, "qa", seed) for model in ("tiny", "tiny-wide") for seed in (0, 1)]


def a_tally(*records: RunRecord, ended: str = "") -> Tally:
    by_cell = {tally.cell_of(record): record for record in records}
    return Tally(study="g", asked=CELLS, records=by_cell, ended=ended)


@pytest.mark.parametrize(
    ("record", "ended", "state"),
    [
        ({}, "", "done"),
        ({"status": "FAILED", "metrics": {}}, "", "failed"),
        ({"status": "KILLED", "metrics": {}}, "", "stopped"),
        ({"status": "RUNNING"}, "", "running"),
        ({"status": "FAILED", "tags": {UNFIT: "too large"}}, "", "does not fit"),
        ({"tags": {STOPPED_EARLY: "after step 1", STOPPED_WHY: "budget"}}, "", "ended early"),
        (None, "", "not started"),
        (None, "0.1 kg are spent", "not started: budget"),
    ],
)
def test_each_cell_has_a_state(record: Mapping[str, Any] | None, ended: str, state: str) -> None:
    records = [] if record is None else [a_run(CELLS[0], **record)]
    found = a_tally(*records, ended=ended)
    assert found.state(CELLS[0]) == state
    assert tally.rows(found)[0]["state"] == state
    assert (tally.rows(found)[0]["val_loss"] is None) == (state != "done")
    if state != "done":
        assert state in tally.table(found)


def test_what_does_not_fit_does_so_with_every_seed() -> None:
    found = a_tally(a_run(CELLS[0], status="FAILED", metrics={}, tags={UNFIT: "too large"}))
    assert [found.state(cell) for cell in CELLS] == [
        "does not fit", "does not fit", "not started", "not started"
    ]  # fmt: skip
    assert tally.summary(found, [], []).count("- too large") == 1
    assert not found.fruitless  # two are to come
    assert a_tally(found.records[CELLS[0]], ended="spent").fruitless


def test_the_table_has_means_and_deviations_over_the_seeds_and_fits_a_terminal() -> None:
    assumed = {"intensity_assumed": "true"}
    runs = [a_run(cell, n, tags=assumed) for n, cell in enumerate(CELLS)]
    lines = tally.table(a_tally(*runs)).splitlines()
    assert " ".join(lines[0].split()) == "model task seeds val loss g CO2e* g/h* time"
    assert " ".join(lines[2].split()) == "tiny qa 2/2 1.05 ± 0.07 1 ± 0 4 15.0 min"
    text = tally.summary(a_tally(*runs), runs, [])
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "Next: mlflow run . -e compare -P study=g" in text
    assert "to go" not in text


def test_long_names_and_small_figures_leave_every_column_on_the_screen() -> None:
    cells = [Cell("owner/a-model-with-a-long-name", "summarization", seed) for seed in (0, 1)]
    figures = {"runtime_h": 12.345, "energy_kwh": 1.0}
    results = [
        {"emissions_kg": (1.23456 + n / 12) * 1e-7, "val_loss": 0.93781 + n / 1e3} for n in (0, 1)
    ]
    runs = [a_run(cell, n, metrics=figures | results[n]) for n, cell in enumerate(cells)]
    found = Tally(study="g", asked=cells, records=dict(zip(cells, runs, strict=True)))
    figures_shown = ["0.000128", "±", "6e-06", "1.03e-05", "12.35", "h"]
    (row,) = tally.table(found).splitlines()[2:]
    assert row.split()[:3] == ["owner/a-m…", "summarization", "2/2"]
    assert row.split()[3:] == ["0.9383", "±", "0.0007", *figures_shown]


def test_the_last_attempt_at_a_cell_counts() -> None:
    first = a_run(CELLS[0], 0, status="FAILED", metrics={})
    again = a_run(CELLS[0], 1)
    assert tally.newest([again, first]) == {CELLS[0]: again}


def test_a_stopped_grid_says_how_to_go_on() -> None:
    text = tally.summary(a_tally(a_run(CELLS[0])), [], [])
    assert "3 cells to go; go on with -P study=g" in text
    spaced = replace(a_tally(), study="my grid")
    text = tally.summary(spaced, [], [])
    assert "go on with -P study='my grid'" in text
    assert "compare -P study='my grid'" in text
    text = tally.summary(a_tally(a_run(CELLS[0]), ended="0.1 kg are spent"), [], [])
    assert "Ended: 0.1 kg are spent; go on with -P study=g and a larger budget" in text


def test_a_cell_that_is_a_sweep_has_its_best_loss_and_all_that_it_has_cost() -> None:
    cell, tags = CELLS[0], {STUDY: "g/tiny-qa-0"}
    trials = [a_run(cell, n, kind="trial", tags=tags) for n in range(3)]
    best = replace(trials[1], metrics={**trials[1].metrics, "val_loss": 0.5})
    trials[1] = best
    sweep = a_run(cell, 9, kind="sweep", tags=tags, metrics={"overhead/emissions_kg": 0.002})
    found = tally.of_sweep("g/tiny-qa-0", trials, [sweep], 3)
    assert found is not None
    assert (found.metrics["val_loss"], found.run_id) == (0.5, sweep.run_id)
    assert found.metrics["emissions_kg"] == pytest.approx(0.005)
    assert not found.ended_early
    part = tally.of_sweep("g/tiny-qa-0", trials, [sweep], 5)
    assert part is not None
    assert part.tags[STOPPED_EARLY] == "after 3 of 5 trials"
    assert tally.of_sweep("g/tiny-qa-1", trials, [sweep], 3) is None


def test_an_attempt_that_was_tried_again_does_not_make_a_sweep_whole() -> None:
    cell, tags = CELLS[0], {STUDY: "g/tiny-qa-0"}
    cut_off = a_run(cell, 0, kind="trial", tags=tags, status="FAILED", metrics={})
    again = a_run(cell, 1, kind="trial", tags=tags | {RETRY_OF: cut_off.run_id})
    last = a_run(cell, 2, kind="trial", tags=tags)
    sweep = a_run(cell, 9, kind="sweep", tags=tags, metrics={})
    found = tally.of_sweep("g/tiny-qa-0", [cut_off, again, last], [sweep], 3)
    assert found is not None
    assert found.tags[STOPPED_EARLY] == "after 2 of 3 trials"


def test_a_sweep_of_few_points_has_no_more_trials_than_these() -> None:
    pinned = {"learning_rate": "1e-4", "warmup_steps": "5", "epochs": "1", "lora_rank": "8",
              "accumulation_steps": "1"}  # fmt: skip
    asked = SMALL | pinned | {"batch_size": "4,8,16", "task": "qa", "trials": "9"}
    points, other = (Grid.parse(asked | {"sampler": name}) for name in ("grid", "tpe"))
    assert entrypoint._with_points(points).config.trials == 3
    assert entrypoint._with_points(other).config.trials == 9
    assert entrypoint._with_points(Grid.parse(SMALL | {"sampler": "grid"})).config.trials == 1


def test_seeds_that_were_queued_before_cannot_be_left_out(store_uri: str) -> None:
    tracker = Tracker(store_uri)
    with tracker.run("grid", "g", tags={STUDY: "g"}, asked={"seed": "0,1"}):
        pass
    with tracker.run("sweep", "g/tiny-qa-2", tags={STUDY: "g/tiny-qa-2"}, asked={"seed": "2"}):
        pass
    with pytest.raises(ConfigError, match=r"g was asked for with seed=0,1, now without 1; give"):
        Shelf(tracker=tracker, name="g", prepared=prepared(task="qa", seed="0,2")).check()
    Shelf(tracker=tracker, name="g", prepared=prepared(task="qa", seed="0,1,3")).check()
    Shelf(tracker=tracker, name="h", prepared=prepared(task="qa", seed="5")).check()


def test_a_study_to_start_from_that_has_no_front_is_found_before_the_first_cell(
    store_uri: str,
) -> None:
    found = prepared(task="qa", trials="3", warm_start="nothing")
    with pytest.raises(ConfigError, match=r"warm_start=nothing: the store has no front of that"):
        Shelf(tracker=Tracker(store_uri), name="g", prepared=found).check()
    coarse = prepared(task="qa", trials="3", warm_start="nothing", sampler="grid")
    Shelf(tracker=Tracker(store_uri), name="g", prepared=coarse).check()


def test_an_account_of_a_part_is_opened_after_its_run() -> None:
    opened: list[bool] = []
    meter: Any = SimpleNamespace(open=lambda *, checked: opened.append(checked))
    with Host(tracker=none()).account(meter):
        assert opened == []
    account = Host(tracker=none(), run=none()).account(meter)
    assert opened == []  # a store that is away meanwhile leaves no account open
    with account:
        assert opened == [False]


def test_data_that_one_task_lacks_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "sentiment").mkdir()
    for split in ("train", "validation"):
        row = f'{{"text": "a fine {split}", "label": "positive"}}\n'
        (tmp_path / "sentiment" / f"{split}.jsonl").write_text(row)
    with pytest.raises(DataError, match=r"^task=qa: data=.* has no train.jsonl"):
        prepared(task="sentiment,qa", data=str(tmp_path))


def test_a_scored_cell_takes_over_task_metrics_and_what_they_cost_and_a_trial_does_not() -> None:
    phases = {f"{name}/energy_kwh": 1.0 for name in ("setup", "train", "eval", "save", "quality")}
    figures = {**phases, "quality.f1": 0.7, "start_quality.f1": 0.1, "energy_kwh": 5.0,
               "emissions_kg": 2.5, "val_loss": 1.0}  # fmt: skip
    record = a_run(CELLS[0], metrics=figures)
    plain, _ = as_trial(record, Basis(g_per_kwh=500.0))
    scored, _ = as_trial(record, Basis(g_per_kwh=500.0), scored=True)
    assert (plain["energy_kwh"], scored["energy_kwh"]) == (3.0, 4.0)
    assert not any("quality" in name for name in plain)
    assert (scored["quality.f1"], scored["start_quality.f1"]) == (0.7, 0.1)
    unscored = a_run(CELLS[0], metrics={k: v for k, v in figures.items() if "quality" not in k})
    assert as_trial(unscored, Basis(g_per_kwh=500.0), scored=True)[0]["energy_kwh"] == 3.0


def test_that_it_does_not_fit_is_a_kind_of_wrong_config(make_job: Callable[..., Job]) -> None:
    small = replace(make_job().device, memory_gib=0.01)
    job = replace(make_job(), devices=(small,))
    with pytest.raises(DoesNotFit) as caught:
        job.with_config(TrainConfig(gpu="cpu"))
    assert isinstance(caught.value, ConfigError)
    assert caught.value.exit_code == 2


def test_a_sweep_that_uses_up_the_grids_budget_ends_the_grid_and_its_cell_is_gone_on_with(
    store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prepared(task="qa", seed="0,1", trials="3")
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    study = open_study(url, "g", found.grid.dimensions, identity={})
    worker = a_worker(found, Tracker(store_uri), study, none(), lambda text: None)
    worker = replace(worker, host=Host(tracker=worker.shelf.tracker))
    begun: list[tuple[str, int, int]] = []

    def spent(job: Job, space: Space, config: SweepConfig, asked: Any, *_: Any) -> str:
        begun.append((config.study, job.config.seed, config.trials))
        assert asked["study"] == config.study
        assert "epochs" in space
        return "0.1 kg are spent"

    monkeypatch.setattr("entrypoints.grid.run_study", spent)
    total = study.enqueue(cell._asdict() for cell in found.cells())
    with pytest.raises(OutOfBudget, match="kg are spent"):
        run_sweep(study, total, worker.run, nothing_settled, everything_admitted, alike=False)
    assert begun == [("g/tiny-qa-0", 0, 3)]
    assert study.missing(total) == total


def test_a_cell_whose_base_cannot_be_loaded_leaves_a_run_that_says_so(
    store_uri: str, tmp_path: Path
) -> None:
    def load(job: Job) -> None:
        raise ModelError("weights are missing")

    found, tracker = prepared(task="qa", seed="4", quality_examples="0"), Tracker(store_uri)
    study = open_study(
        f"sqlite:///{tmp_path / 'optuna.db'}", "g", found.grid.dimensions, identity={}
    )
    total = study.enqueue(cell._asdict() for cell in found.cells())
    bench: Any = SimpleNamespace(load=load)
    meter: Any = SimpleNamespace(phase=lambda name: nullcontext())
    with tracker.run("grid", "g") as parent:
        trials = Trials(
            study=study, name="g", tracker=tracker, parent=parent, bench=bench, meter=meter,
            ledger=none(), bound=None, reuse=False, show=lambda record: None, kind="cell",
            title=lambda trial: grids.name_of(Cell(**trial.values)),
        )  # fmt: skip
        shelf = Shelf(tracker=tracker, name="g", prepared=found)
        worker = Worker(
            shelf=shelf, study=study, trials=trials, bench=bench, host=none(), meter=meter,
            say=lambda text: None,
        )  # fmt: skip
        run_sweep(study, total, worker.run, nothing_settled, everything_admitted, alike=False)
    (record,) = tracker.find(Query(study="g", kinds=("cell",)))
    assert (record.status, record.name) == ("FAILED", "tiny qa seed 4")
    assert record.params["learning_rate"] == "0.0002"
    assert record.tags["gpu_type"] == "cpu"
    text = tally.summary(shelf.tally(""), [], [])
    assert "- tiny qa seed 4 failed, weights are missing" in text
    assert study.missing(total) == 0
