import csv
import io
import json
import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient

from entrypoints.compare import compare
from green_tune import footprint, intensity, recompute, report
from green_tune.footprint import Segment
from green_tune.results import EVALUATIONS, RunRecord
from green_tune.trace import HOUR_S, Trace

START = datetime(2026, 1, 1, tzinfo=UTC)
START_S = START.timestamp()
HEADER = "Datetime (UTC),Zone id,Carbon intensity gCO₂eq/kWh (Life cycle)"
HOURLY = (50.0, 150.0, 100.0, 80.0)
GERMANY = {"intensity_zone": "Germany", "intensity_g_per_kwh": "350", "intensity_source": "x",
           "intensity_assumed": "false", "intensity_year": "2023"}  # fmt: skip


def segment(
    phase: str, start_h: float, runtime_h: float, kwh: float, *, gpu_share: float = 0.5
) -> Segment:
    return Segment(
        phase=phase,
        started_s=START_S + start_h * HOUR_S,
        runtime_h=runtime_h,
        energy_cpu_kwh=kwh * (1 - gpu_share) / 2,
        energy_gpu_kwh=kwh * gpu_share,
        energy_ram_kwh=kwh * (1 - gpu_share) / 2,
    )


def metrics_of(segments: Sequence[Segment]) -> dict[str, float]:
    kwh = sum(s.energy_kwh for s in segments)
    hours = sum(s.runtime_h for s in segments)
    metrics = {"val_loss": 1.0, "codecarbon_kg": 9.0, "runtime_h": hours, "energy_kwh": kwh,
               "energy_low_kwh": kwh / 2, "energy_high_kwh": kwh * 2,
               "emissions_rate_kg_per_h": 9.0, "emissions_kg": 9.0, "emissions_low_kg": 9.0,
               "emissions_high_kg": 9.0}  # fmt: skip
    for phase in {s.phase for s in segments}:
        mine = sum(s.energy_kwh for s in segments if s.phase == phase)
        metrics |= {f"{phase}/energy_kwh": mine, f"{phase}/emissions_kg": 9.0}
    return metrics


def record(metrics: Mapping[str, float], **tags: str) -> RunRecord:
    return RunRecord(
        run_id="0123456789abcdef",
        name="run",
        kind="train",
        status="FINISHED",
        started=START,
        metrics=metrics,
        tags=GERMANY | {"base_model": "tiny"} | tags,
    )


def hourly(*figures: float) -> Trace:
    rows = [(START_S + hour * HOUR_S, g) for hour, g in enumerate(figures)]
    return Trace(zone="FR", kind="life cycle", source="fr.csv (life cycle)", rows=rows)


SEGMENTS = (
    segment("setup", 0.0, 0.5, 1.0),
    segment("train", 0.5, 1.0, 4.0),
    segment("eval", 1.5, 0.25, 0.5),
    segment("train", 1.75, 0.5, 2.0),
    segment("between", 2.25, 0.0, 0.0),
)
RUN = record(metrics_of(SEGMENTS), pue="1.2")
EMITTED = {  # 1.2 x kWh x the mean of the hours, by hand
    "setup": 1.2 * 1.0 * 50,
    "train": 1.2 * (4.0 * 100 + 2.0 * 125),
    "eval": 1.2 * 0.5 * 150,
    "between": 0.0,
}


def test_another_intensity_reaches_every_kilogram_and_nothing_else() -> None:
    france = intensity.resolve("56")
    known = recompute.with_intensity(RUN, france)
    for name, energy in recompute.ENERGY_OF.items():
        assert (name in known.metrics) == (energy in RUN.metrics)
        if energy in RUN.metrics:
            expected = RUN.metrics[energy] * 1.2 * 0.056
            assert known.metrics[name] == pytest.approx(expected, rel=1e-12), name
    rate = known.metrics["emissions_kg"] / known.metrics["runtime_h"]
    assert known.metrics["emissions_rate_kg_per_h"] == pytest.approx(rate, rel=1e-12)
    assert changed(RUN, known) == {n for n in RUN.metrics if "emissions" in n}
    assert known.tags == {"base_model": "tiny", "pue": "1.2"} | france.to_tags()
    assert RUN.metrics["emissions_kg"] == 9.0


def changed(one: RunRecord, other: RunRecord) -> set[str]:
    return {name for name in {*one.metrics, *other.metrics}
            if one.metrics.get(name) != other.metrics.get(name)}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["energy_kwh", "energy_low_kwh", "energy_high_kwh", "paused/energy_kwh", "overhead/energy_kwh"],
)
def test_every_kind_of_energy_has_its_kilograms(name: str) -> None:
    given = record({"energy_kwh": 1.0} | {name: 2.0})
    known = recompute.with_intensity(given, intensity.resolve("100"))
    assert known.metrics[name.replace("energy", "emissions").replace("kwh", "kg")] == 0.2


def test_an_old_run_has_no_pue_no_phases_and_no_bounds() -> None:
    old = record({"energy_kwh": 2.0, "emissions_kg": 9.0, "runtime_h": 0.5})
    known = recompute.with_intensity(old, intensity.resolve("100"))
    assert known.metrics == {
        "energy_kwh": 2.0, "runtime_h": 0.5, "emissions_kg": 0.2, "emissions_rate_kg_per_h": 0.4,
    }  # fmt: skip


def test_a_run_of_no_length_has_a_rate_of_zero_and_one_without_a_length_has_none() -> None:
    zone = intensity.resolve("100")
    brief = recompute.with_intensity(record({"energy_kwh": 2.0, "runtime_h": 0.0}), zone)
    assert brief.metrics["emissions_rate_kg_per_h"] == 0.0
    stale = record({"energy_kwh": 2.0, "emissions_rate_kg_per_h": 9.0})
    assert "emissions_rate_kg_per_h" not in recompute.with_intensity(stale, zone).metrics


COURSE = ((0, 0.0, 3.0, 0.9), (20, 0.5, 2.0, 4.5), (40, 1.0, 1.0, 8.1))  # of 9 kg in all


def test_a_course_takes_the_new_kilograms_of_its_run() -> None:
    run = record(metrics_of(SEGMENTS), pue="1.2", **{EVALUATIONS: json.dumps(COURSE)})
    for known in (
        recompute.with_intensity(run, intensity.resolve("56")),
        recompute.with_trace(run, hourly(*HOURLY), SEGMENTS),
    ):
        total = known.metrics["emissions_kg"]
        spent = [e.emissions_kg for e in known.course]
        assert spent == pytest.approx([0.1 * total, 0.5 * total, 0.9 * total], rel=1e-5)
        for now, was in zip(known.course, run.course, strict=True):
            assert replace(now, emissions_kg=was.emissions_kg) == was


@pytest.mark.parametrize("kg", [None, 0.0])
def test_a_course_whose_intensity_nobody_knows_is_left_out(kg: float | None) -> None:
    total = {} if kg is None else {"emissions_kg": kg}
    run = record({"energy_kwh": 2.0} | total, **{EVALUATIONS: json.dumps(COURSE)})
    known = recompute.with_intensity(run, intensity.resolve("100"))
    assert (known.metrics["emissions_kg"], known.course) == (0.2, [])


def test_a_run_that_loses_its_kilograms_loses_those_of_its_course() -> None:
    run = record(metrics_of(SEGMENTS), **{EVALUATIONS: json.dumps(COURSE)})
    assert recompute.with_trace(run, hourly(*HOURLY), None).course == []


def test_a_run_without_energy_stays_as_it_is() -> None:
    unmeasured = record({"val_loss": 1.0})
    assert recompute.with_intensity(unmeasured, intensity.resolve("100")) is unmeasured
    assert recompute.with_trace(unmeasured, hourly(*HOURLY), None) is unmeasured
    assert recompute.hole(unmeasured, hourly(*HOURLY), None) == ""


def test_each_segment_takes_the_intensity_of_its_own_hours() -> None:
    known = recompute.with_trace(RUN, hourly(*HOURLY), SEGMENTS)
    grams = sum(EMITTED.values())
    mean = grams / 1.2 / 7.5
    assert recompute.hole(RUN, hourly(*HOURLY), SEGMENTS) == ""
    for phase, expected in EMITTED.items():
        got = known.metrics[f"{phase}/emissions_kg"]
        assert got == pytest.approx(expected / 1000, rel=1e-9), phase
    assert known.metrics["emissions_kg"] == pytest.approx(grams / 1000, rel=1e-9)
    assert known.metrics["emissions_low_kg"] == pytest.approx(grams / 2000, rel=1e-9)
    assert known.metrics["emissions_high_kg"] == pytest.approx(grams / 500, rel=1e-9)
    assert known.metrics["emissions_rate_kg_per_h"] == pytest.approx(grams / 2250, rel=1e-9)
    assert changed(RUN, known) == {n for n in RUN.metrics if "emissions" in n}
    assert known.tags == {
        "base_model": "tiny",
        "pue": "1.2",
        "intensity_g_per_kwh": f"{mean:g}",
        "intensity_zone": "FR",
        "intensity_source": "fr.csv (life cycle)",
        "intensity_year": "2026",
        "intensity_assumed": "false",
    }


@pytest.mark.parametrize(
    ("trace", "segments", "said"),
    [
        (hourly(*HOURLY), None, "run 01234567 has no energy.csv"),
        (hourly(*HOURLY), (), "run 01234567 has no energy.csv"),
        (hourly(*HOURLY), SEGMENTS[-1:], "run 01234567 has no energy.csv"),
        (hourly(*HOURLY), SEGMENTS[:2], "has 5 kWh in its energy.csv, but spent 7.5 kWh"),
        (hourly(50.0), SEGMENTS, "ran at 2026-01-01 02:00 UTC, an hour that fr.csv (life cycle)"),
    ],
)
def test_a_run_that_the_trace_does_not_reach_has_no_kilograms_and_one_line_why(
    trace: Trace, segments: Sequence[Segment] | None, said: str
) -> None:
    why = recompute.hole(RUN, trace, segments)
    assert said in why
    assert "\n" not in why
    bare = recompute.with_trace(RUN, trace, segments)
    assert not [name for name in bare.metrics if "emissions" in name]
    assert bare.metrics == {n: v for n, v in RUN.metrics.items() if "emissions" not in n}
    assert bare.tags == {"base_model": "tiny", "pue": "1.2"}


def test_the_report_shows_runs_without_kilograms_and_keeps_them_off_the_front() -> None:
    bare = recompute.with_trace(RUN, hourly(50.0), SEGMENTS)
    known = replace(recompute.with_trace(RUN, hourly(*HOURLY), SEGMENTS), run_id="f" * 16)
    assert report.fronts([bare, known]) == [known]
    assert "01234567" in report.comparison([bare, known])
    assert "01234567" in report.comparison([bare])
    assert [row["emissions_kg"] for row in report.rows([bare])] == [None]
    assert '"emissions_kg": null' in report.to_json([bare])
    (row,) = csv.DictReader(io.StringIO(report.to_csv([bare])))
    assert (row["emissions_kg"], row["intensity_g_per_kwh"]) == ("", "")


def test_only_hours_with_energy_must_be_covered() -> None:
    idle = segment("paused", 9.0, 100.0, 0.0)
    known = recompute.with_trace(RUN, hourly(*HOURLY), [*SEGMENTS, idle])
    assert known.metrics["emissions_kg"] == pytest.approx(sum(EMITTED.values()) / 1000)


amounts = st.floats(1e-6, 100)
spans = st.lists(
    st.tuples(st.sampled_from(footprint.PHASES), st.integers(0, 7000), amounts),
    min_size=1, max_size=6,
)  # fmt: skip


def consecutive(spans: Sequence[tuple[str, int, float]]) -> list[Segment]:
    begins = [sum(seconds for _, seconds, _ in spans[:i]) for i in range(len(spans))]
    return [
        segment(phase, begin / HOUR_S, seconds / HOUR_S, kwh)
        for begin, (phase, seconds, kwh) in zip(begins, spans, strict=True)
    ]


@settings(max_examples=50, deadline=None)
@given(spans=spans, g=st.integers(1, 2000), pue=st.sampled_from(["1", "1.25", "1.58"]))
def test_a_trace_that_never_changes_says_what_one_intensity_says(
    spans: list[tuple[str, int, float]], g: int, pue: str
) -> None:
    segments = consecutive(spans)
    run = record(metrics_of(segments), pue=pue)
    by_hour = recompute.with_trace(run, hourly(*[g] * 14), segments)
    at_once = recompute.with_intensity(run, intensity.resolve(str(g)))
    assert by_hour.metrics == pytest.approx(dict(at_once.metrics), rel=1e-12)
    means = [float(run.tags["intensity_g_per_kwh"]) for run in (by_hour, at_once)]
    assert means[0] == pytest.approx(means[1], rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    spans=spans,
    figures=st.lists(st.floats(0, 2000), min_size=14, max_size=14),
    which=st.integers(0, 5),
    share=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_a_segment_in_two_halves_emits_what_it_emitted_whole(
    spans: list[tuple[str, int, float]], figures: list[float], which: int, share: float
) -> None:
    segments = consecutive([(phase, seconds // 4 * 4, kwh) for phase, seconds, kwh in spans])
    run, trace = record(metrics_of(segments)), hourly(*figures)
    whole = segments.pop(which % len(segments))
    halves = [part(whole, 0.0, share), part(whole, share, 1.0)]
    split = recompute.with_trace(run, trace, [*segments, *halves]).metrics
    assert split == pytest.approx(
        dict(recompute.with_trace(run, trace, [*segments, whole]).metrics), rel=1e-9
    )


def part(whole: Segment, since: float, until: float) -> Segment:
    share = until - since
    return replace(
        whole,
        started_s=whole.started_s + since * whole.runtime_h * HOUR_S,
        **{name: getattr(whole, name) * share for name in footprint.AMOUNTS},
    )


@pytest.fixture(autouse=True)
def _own_handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts back what a command sets for its whole process."""
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "")
    monkeypatch.delenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR")
    handlers, level = logging.root.handlers[:], logging.root.level
    signals = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    for number, handler in signals.items():
        signal.signal(number, handler)


def stored(uri: str, energy_csv: str | None, metrics: Mapping[str, float], **tags: str) -> str:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("e")
    where = Path("artifacts").resolve().as_uri()
    number = experiment.experiment_id if experiment else client.create_experiment("e", where)
    tags = GERMANY | {"green_tune.kind": "train", "base_model": "tiny", "gpu_type": "cpu"} | tags
    run_id = str(client.create_run(number, tags=tags).info.run_id)
    for name, value in metrics.items():
        client.log_metric(run_id, name, value)
    if energy_csv is not None:
        client.log_text(run_id, energy_csv, "energy.csv")
    client.set_terminated(run_id, "FINISHED")
    return run_id


def everything(uri: str) -> list[Any]:
    client = MlflowClient(uri)
    numbers = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(numbers)
    return [(run.to_dictionary(), [f.path for f in client.list_artifacts(run.info.run_id)])
            for run in runs]  # fmt: skip


def compared(country: object, form: str = "csv") -> Result:
    return CliRunner().invoke(compare, ["--country", str(country), "--format", form])


def trace_file(*figures: float | str, zone: str = "FR") -> Path:
    path = Path("fr 2026.csv")
    lines = [f"2026-01-01 {hour:02}:00:00,{zone},{g}" for hour, g in enumerate(figures)]
    path.write_text("\n".join([HEADER, *lines]), encoding="utf-8")
    return path


def test_compare_derives_kilograms_by_the_hour_and_leaves_the_store_alone(
    store_uri: str,
) -> None:
    run_id = stored(store_uri, footprint.to_csv(SEGMENTS), RUN.metrics, pue="1.2")
    before = everything(store_uri)
    done = compared(trace_file(*HOURLY))
    assert done.exit_code == 0, done.output
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert row["run_id"] == run_id
    assert float(row["emissions_kg"]) == pytest.approx(sum(EMITTED.values()) / 1000, rel=1e-9)
    assert float(row["energy_kwh"]) == RUN.metrics["energy_kwh"]
    assert row["intensity_assumed"] == "false"
    (warned,) = done.stderr.splitlines()
    assert "what-if: the trace is of FR, but runs were recorded elsewhere: 1 in Germany" in warned
    assert everything(store_uri) == before


@pytest.mark.parametrize("zone", ["DE", "DE-LU", "Germany", ""])
def test_a_trace_of_the_runs_own_country_is_no_what_if(store_uri: str, zone: str) -> None:
    stored(store_uri, footprint.to_csv(SEGMENTS), RUN.metrics)
    done = compared(trace_file(*HOURLY, zone=zone), "table")
    assert (done.exit_code, done.stderr) == (0, "")
    assert " g/kWh" in done.stdout


@pytest.mark.parametrize("tags", [{"intensity_assumed": "true"}, {"intensity_zone": "given"}])
def test_where_a_run_was_is_not_held_against_it_when_nobody_knows(
    store_uri: str, tags: dict[str, str]
) -> None:
    stored(store_uri, footprint.to_csv(SEGMENTS), RUN.metrics, **tags)
    assert compared(trace_file(*HOURLY)).stderr == ""


def test_many_runs_with_one_problem_are_one_line(store_uri: str) -> None:
    late = [replace(s, started_s=s.started_s + 86400) for s in SEGMENTS]
    for text in (None, None, "phase,kwh\na,1\n", "phase\n", footprint.to_csv(SEGMENTS)[:-20]):
        stored(store_uri, text, RUN.metrics)
    for _ in range(3):
        stored(store_uri, footprint.to_csv(late), RUN.metrics)
    stored(store_uri, None, {"val_loss": 1.0})
    done = compared(trace_file(*HOURLY))
    assert done.exit_code == 0, done.output
    without, uncovered = sorted(done.stderr.splitlines(), reverse=True)
    assert "no kilograms for 5 of 9 runs: run " in without
    assert "has no energy.csv" in without
    assert "(4 more like it)" in without
    assert "no kilograms for 3 of 9 runs: run " in uncovered
    assert "ran at 2026-01-02 00:00 UTC" in uncovered
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["emissions_kg"] for row in rows] == [""] * 9


def test_a_country_and_a_number_reach_every_run_without_its_segments(
    store_uri: str,
) -> None:
    stored(store_uri, None, RUN.metrics, pue="1.2")
    for country in ("100", "GBR"):
        g = intensity.resolve(country).g_per_kwh
        (row,) = csv.DictReader(io.StringIO(compared(country).stdout))
        assert float(row["emissions_kg"]) == pytest.approx(7.5 * 1.2 * g / 1000, rel=1e-12)


@pytest.mark.parametrize(
    ("country", "said"),
    [
        ("no.csv", "no.csv does not exist"),
        ("NO.CSV", "NO.CSV does not exist"),
        ("notes", "notes has one column"),
        ("x" * 5000, "neither an ISO code"),
        ("FRANCE", "neither an ISO code"),
    ],
)
def test_bad_input_is_one_line_before_the_store_is_opened(
    country: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    Path("notes").write_text("a\n")
    done = compared(country)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
