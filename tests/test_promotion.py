"""What is registered of a chosen adapter: figures of its own, said once and everywhere alike."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trained
import yaml
from mlflow import MlflowClient

from green_tune import adapters, choice, parcel, points, promotion
from green_tune.choice import Chosen
from green_tune.errors import AdapterError
from green_tune.points import Point
from green_tune.promotion import Origin
from green_tune.query import Query
from green_tune.registry import Registry
from green_tune.results import STUDY, RunRecord
from green_tune.tracking import Tracker
from green_tune.versions import ADDRESS, FRONT_TAG, RULES_TAG, SEAL, Version

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Tracker, Registry]:
    """A copy of the trained store, with nothing promoted."""
    uri = trained.copied(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return Tracker(uri), Registry(uri)


Store = tuple[Tracker, Registry]


def kept(store: Store, *, on_the_way: bool) -> Point:
    """An adapter that is there: the end of a run, or one on its way."""
    tracker, registry = store
    every = points.every(tracker.find(Query(study=trained.STUDY)))

    def is_there(point: Point) -> bool:
        return parcel.WEIGHTS in registry.files(registry.place(choice.address(point)))

    return next(p for p in every if p.ended is not on_the_way and is_there(p))


def chosen(store: Store, *rules: str, on_the_way: bool = False) -> Origin:
    point = kept(store, on_the_way=on_the_way)
    one = Chosen(point=point, rules=rules, front=(point.pair,))
    tracker = store[0]
    return promotion.origin(one, tracker.get(one.run_id), "http://h/#/run", tracker.find)


def unscored(_: Path, __: Mapping[str, Any]) -> None:
    """Where no evaluation can be had."""


def registered(source: Origin, store: Store) -> Version:
    return promotion.register(source, "m", store[1], unscored)


def test_the_sweep_that_a_trial_was_one_of_stands_beside_it(store: Store) -> None:
    source = chosen(store)
    (sweep,) = store[0].find(Query(kinds=("sweep",), study=trained.STUDY))
    assert source.study
    assert (source.study.name, source.study.trials) == (trained.STUDY, 3)
    assert source.study.emissions_kg == sweep.metrics["emissions_kg"]
    assert source.evaluation is None
    alone = replace(source.record, kind="train", tags={})
    point = points.every([alone])[-1]
    one = Chosen(point=point, rules=(), front=())
    assert promotion.origin(one, alone, "", store[0].find).study is None


def test_of_several_evaluations_the_last_that_ended_well_on_its_data_is_taken(
    store: Store,
) -> None:
    source, client = chosen(store), MlflowClient(store[0].uri)
    ids = []
    for start, (status, data) in enumerate(
        [("FINISHED", "sample"), ("FINISHED", "auto"), ("FINISHED", "other"), ("FAILED", "sample")]
    ):
        tags = {"green_tune.kind": "evaluate", ADDRESS: source.chosen.address}
        ids.append(client.create_run("0", start_time=start + 1, tags=tags).info.run_id)
        client.log_param(ids[-1], "data", data)
        client.set_terminated(ids[-1], status)
    evaluation = chosen(store).evaluation
    assert evaluation
    assert evaluation.run_id == ids[1]


def test_a_version_says_what_its_run_has_measured(store: Store) -> None:
    source = chosen(store, "best")
    version, record = registered(source, store), source.record
    for name in ("val_loss", "emissions_kg", "energy_kwh", "runtime_h", "emissions_low_kg"):
        assert version.figure(name) == pytest.approx(record.metrics[name])
    for name in ("gpu_type", "base_model", "data_digest", "intensity_g_per_kwh"):
        assert version.tags[name] == record.tags[name]
    assert version.rules == ("best",)
    assert version.front == [pytest.approx(source.chosen.point.pair)]
    assert version.tags["run_link"] == source.link
    assert version.tags[STUDY] == trained.STUDY
    assert not [name for name in version.tags if name.startswith("quality.")]


def test_an_adapter_on_the_way_has_figures_of_its_own(store: Store) -> None:
    source = chosen(store, "balanced", on_the_way=True)
    version, point = registered(source, store), source.chosen.point
    assert version.tags[ADDRESS] == source.chosen.address
    assert version.pair == pytest.approx(point.pair)
    assert version.figure("emissions_kg") < source.record.metrics["emissions_kg"]
    part = version.figure("emissions_kg") / source.record.metrics["emissions_kg"]
    assert version.figure("energy_kwh") == pytest.approx(part * source.record.metrics["energy_kwh"])
    assert "emissions_low_kg" not in version.tags


def test_card_description_and_tags_agree(store: Store, tmp_path: Path) -> None:
    version = registered(chosen(store, "best"), store)
    folder = tmp_path / "version"
    folder.mkdir()
    adapters.fetch_version(version, store[1], folder)
    card = (folder / parcel.ADAPTER / parcel.CARD).read_text()
    grams = yaml.safe_load(card.split("---")[1])["co2_eq_emissions"]["emissions"]
    assert grams == pytest.approx(1000 * version.figure("emissions_kg"), rel=1e-3)
    parcel.check(folder, version.tags[SEAL])
    told = str(MlflowClient(store[0].uri).get_model_version("m", "1").description)
    assert f"{grams:.3g}"[:4] in told
    assert version.tags["data_digest"] in told
    assert version.tags["run_link"] in told


def test_an_adapter_is_registered_once_and_gains_the_rules_that_choose_it_later(
    store: Store,
) -> None:
    first = registered(chosen(store, "best"), store)
    assert registered(chosen(store, "best"), store) == first
    again = registered(chosen(store, "greenest", "best"), store)
    assert (again.number, again.rules) == (1, ("best", "greenest"))
    assert again.tags == {**first.tags, RULES_TAG: "best,greenest"}
    assert len(store[1].versions()) == 1


def test_rules_are_kept_where_another_process_has_registered_it_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(chosen(store, "best"), store)
    look, looks = Registry.of_adapter, [None]

    def late(self: Registry, name: str, address: str) -> Version | None:
        return looks.pop() if looks else look(self, name, address)

    monkeypatch.setattr(Registry, "of_adapter", late)
    version = registered(chosen(store, "greenest"), store)
    assert (version.number, version.rules) == (1, ("best", "greenest"))
    assert len(store[1].versions()) == 1


def test_an_evaluation_is_asked_for_only_where_there_is_none(store: Store) -> None:
    asked: list[Path] = []

    def evaluate(folder: Path, recipe: Mapping[str, Any]) -> RunRecord:
        assert recipe["task"] == "sentiment"
        assert (folder / parcel.WEIGHTS).exists()
        asked.append(folder)
        scores = {"quality.accuracy": 0.5, "quality.examples": 8.0, "start_quality.accuracy": 0.25}
        return replace(source.record, metrics=scores, params={"split": "validation"})

    source = chosen(store)
    version = promotion.register(source, "m", store[1], evaluate)
    assert len(asked) == 1
    assert version.figure("quality.accuracy") == 0.5
    assert version.figure("start_quality.accuracy") == 0.25
    scored = {**source.record.metrics, "quality.accuracy": 0.75}
    measured = replace(source, record=replace(source.record, metrics=scored))
    asked.clear()
    assert promotion.register(measured, "n", store[1], evaluate).figure("quality.accuracy") == 0.75
    assert asked == []


def test_what_a_run_scored_at_its_end_is_not_said_of_an_adapter_on_the_way(store: Store) -> None:
    source = chosen(store, on_the_way=True)
    scored = {**source.record.metrics, "quality.accuracy": 1.0, "quality.examples": 8.0}
    source = replace(source, record=replace(source.record, metrics=scored))
    assert not promotion.is_evaluated(source)
    assert "quality.accuracy" not in registered(source, store).tags


def test_an_adapter_that_cannot_be_had_is_registered_as_nothing(store: Store) -> None:
    run_id = MlflowClient(store[0].uri).create_run("0").info.run_id
    source = chosen(store)
    record = replace(source.chosen.point.record, run_id=run_id)
    one = replace(source.chosen, point=replace(source.chosen.point, record=record))
    with pytest.raises(AdapterError, match="there is no adapter at"):
        registered(replace(source, chosen=one), store)
    assert store[1].names() == []


def test_a_long_front_is_thinned_out_and_keeps_its_ends(store: Store) -> None:
    source = chosen(store, "best")
    front = tuple((2.0 - n / 1000, 1e-5 * (n + 1)) for n in range(1000))
    version = registered(replace(source, chosen=replace(source.chosen, front=front)), store)
    assert len(version.tags[FRONT_TAG]) <= promotion.TAG_LENGTH
    assert len(version.front) > 100
    assert version.front[0] == pytest.approx(front[0])
    assert version.front[-1] == pytest.approx(front[-1])
    assert json.loads(version.tags[FRONT_TAG])


def test_a_later_evaluation_is_written_to_the_version(store: Store) -> None:
    source = chosen(store)
    made = {"quality.accuracy": 0.5, "start_quality.accuracy": 0.25, "predictions": 10.0,
            "predictions/energy_kwh": 1e-6, "predictions/runtime_h": 1e-4}  # fmt: skip
    tags = promotion.evaluation_tags(replace(source.record, metrics=made))
    assert (tags["quality.accuracy"], tags["start_quality.accuracy"]) == ("0.5", "0.25")
    assert float(tags[promotion.PER_THOUSAND]) > 0
    assert promotion.PER_THOUSAND not in promotion.evaluation_tags(
        replace(source.record, metrics={"quality.accuracy": 0.5})
    )


def test_adapters_of_a_base_model_for_a_task_have_one_name(store: Store) -> None:
    assert promotion.name_of(chosen(store).record) == "tiny-sentiment"
