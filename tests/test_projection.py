import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import Effects, run

from benchmarks import projecting
from green_tune import intensity, peaks, transfer
from green_tune.effort import Work
from green_tune.errors import ConfigError
from green_tune.hardware import GPUS, Gpu
from green_tune.projection import Target, best_start, project, report, rows
from green_tune.results import RunRecord
from green_tune.trace import HOUR_S, Trace

ROWS = {row.name: row for row in GPUS}
T4, L4, A100, H100 = ROWS["t4"], ROWS["l4"], ROWS["a100-40"], ROWS["h100"]
FRANCE = intensity.resolve("FRA")
START = datetime(2026, 1, 1, tzinfo=UTC)
WORK = Work(
    layers=32,
    train_gflop=4e6 * 6.7,
    train_passes=100,
    train_steps=100,
    eval_gflop=1e5,
    eval_passes=10,
    quality_examples=64,
    useful_tokens=4e5,
    processed_tokens=4e5,
)


def measured(gpu: str = "t4", *, hours: float = 2.0, watts: float = 60.0, **tags: str) -> RunRecord:
    """A run of 6 minutes of setup at 20 W and then `hours`; a tenth of it scores."""
    record = run(random.Random(0), Effects())
    busy = {"train": 0.9 * hours, "quality": 0.1 * hours}
    phases = {"setup": (0.1, 0.002), **{k: (h, h * watts / 1000) for k, h in busy.items()}}
    spent = {f"{k}/runtime_h": h for k, (h, _) in phases.items()}
    spent |= {f"{k}/energy_kwh": kwh for k, (_, kwh) in phases.items()}
    spent |= {f"{k}/energy_gpu_kwh": 0.7 * kwh for k, (_, kwh) in phases.items()}
    kwh = math.fsum(kwh for _, kwh in phases.values())
    totals = {"runtime_h": hours + 0.1, "energy_kwh": kwh, "emissions_kg": 1.2 * kwh * 0.475}
    return replace(
        record,
        metrics={**record.metrics, **spent, **totals, "energy_gpu_kwh": 0.7 * kwh},
        tags={**record.tags, "gpu_type": gpu, "pue": "1.2", **tags},
    )


def of_task(task: str, gpu: str, hours: float, **tags: str) -> RunRecord:
    record = measured(gpu, hours=hours)
    tags = {**record.tags, **tags, "data_digest": f"d{task}"}
    return replace(record, params={**record.params, "task": task}, tags=tags)


def paired(ratios: Sequence[float], **tags: str) -> list[RunRecord]:
    """Tasks that an H100 does in these parts of the time that a T4 takes."""
    return [
        of_task(f"task {i}", gpu, hours, **tags)
        for i, ratio in enumerate(ratios)
        for gpu, hours in (("t4", 3.0), ("h100", 3.0 * ratio))
    ]


def hours(*figures: float | None) -> Trace:
    rows = [(START.timestamp() + i * HOUR_S, g) for i, g in enumerate(figures) if g is not None]
    return Trace(zone="FR", kind="direct", source="fr.csv", rows=rows)


@pytest.mark.parametrize("target", [Target(), Target(gpu=T4)])
def test_on_the_same_gpu_it_is_the_run_itself(target: Target) -> None:
    record = measured()

    found = project(record, target, [])

    assert found.basis == "same GPU"
    assert found.runtime_low_h == found.runtime_h == found.runtime_high_h
    assert found.runtime_h == pytest.approx(record.metrics["runtime_h"])
    assert found.energy_kwh == pytest.approx(record.metrics["energy_kwh"])
    assert found.emissions_kg == pytest.approx(record.metrics["emissions_kg"])


def test_in_another_country_only_the_grams_change_and_these_exactly() -> None:
    record = measured()

    found = project(record, Target(intensity=FRANCE), [])

    kg = record.metrics["energy_kwh"] * 1.2 * FRANCE.g_per_kwh / 1000
    assert found.emissions_low_kg == found.emissions_kg == found.emissions_high_kg
    assert found.emissions_kg == pytest.approx(kg)
    assert found.runtime_h == pytest.approx(record.metrics["runtime_h"])
    assert "France" in found.title


def test_another_pue_is_that_of_the_place_it_is_projected_to() -> None:
    record = measured()  # whose own is 1.2
    own, there = (project(record, Target(pue=pue), []) for pue in (None, 1.8))
    assert there.emissions_kg == pytest.approx(1.5 * own.emissions_kg)
    assert there.energy_kwh == own.energy_kwh
    assert there.title == "PUE 1.8"
    assert there.notes[-1] == "Emissions for a kWh as the run's own, whose PUE was 1.2."
    france = project(record, Target(pue=1.8, intensity=FRANCE), [])
    kg = record.metrics["energy_kwh"] * 1.8 * FRANCE.g_per_kwh / 1000
    assert france.emissions_kg == pytest.approx(kg)


def test_rows_for_machines_hold_what_is_projected() -> None:
    found = project(measured(), Target(intensity=FRANCE), [])
    (row,) = json.loads(json.dumps(rows([found])))
    assert row["emissions_kg"] == found.emissions_kg
    assert row["notes"] == list(found.notes)


def test_a_cpu_is_called_a_machine() -> None:
    assert project(measured("cpu", device="Any 9000"), Target(), []).basis == "same machine"


def test_another_hour_takes_the_mean_of_the_trace_over_the_run() -> None:
    record = measured(hours=1.9)  # 2 hours with the setup

    at = Target(trace=hours(100.0, 200.0, 600.0), start=START + timedelta(hours=1))
    found = project(record, at, [])

    assert found.emissions_kg == pytest.approx(record.metrics["energy_kwh"] * 1.2 * 0.4)
    assert "fr.csv" in found.notes[-1]


def test_a_start_without_a_time_zone_is_utc() -> None:
    trace = hours(100.0, 200.0, 600.0, 700.0)
    naive, aware = (Target(trace=trace, start=at) for at in (START.replace(tzinfo=None), START))

    assert project(measured(), naive, []) == project(measured(), aware, [])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(trace=hours(1.0, None, None, None, 1.0), start=START), "01-01 02:00 UTC"),
        (Target(trace=hours(1.0), start=START - timedelta(hours=1)), "2025-12-31 23:00 UTC"),
        (Target(trace=hours(1.0), intensity=FRANCE), "not both"),
        (Target(start=START), "needs a trace"),
    ],
)
def test_an_hour_that_nobody_knows_is_refused(target: Target, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        project(measured(), target, [])


def test_a_pair_of_gpus_scales_what_they_compute_and_leaves_the_setup() -> None:
    found = project(measured(hours=2.0), Target(gpu=H100), paired([0.1]))

    assert found.basis == "measured pair"
    assert found.runtime_h == pytest.approx(0.1 + 2.0 * 0.1)
    assert found.energy_kwh == pytest.approx(0.002 + 0.12 * 0.1)
    assert found.energy_high_kwh == pytest.approx(0.002 + 0.12 * 0.1 * 1.2)
    assert "assumed" in found.notes[1]


def test_the_same_config_measured_there_counts_before_all_others() -> None:
    record = measured(hours=2.0)
    twin = replace(measured("h100", hours=0.5), params={**record.params, "learning_rate": "0.01"})

    found = project(record, Target(gpu=H100), [record, twin, *paired([0.1, 0.1])])

    assert found.runtime_h == pytest.approx(0.6)
    assert "1 measured pair of the same config" in found.notes[0]


def test_the_same_base_model_counts_before_its_family() -> None:
    near = paired([0.2], model_family="gemma")
    far = paired([0.6, 0.6], model_family="gemma", base_model="gemma-7b")
    record = measured(model_family="gemma")

    assert project(record, Target(gpu=H100), [*far, *near]).runtime_h == pytest.approx(0.5)
    assert project(record, Target(gpu=H100), far).runtime_h == pytest.approx(1.3)
    assert "the same model family" in project(record, Target(gpu=H100), far).notes[0]


@pytest.mark.parametrize("tags", [{"model_family": "llama"}, {"model_family": ""}, {}])
def test_a_pair_is_never_carried_to_another_family(tags: dict[str, str]) -> None:
    others = paired([0.1], **{"base_model": "llama-2-7b", **tags})
    record = measured(model_family="gemma" if tags.get("model_family") else "")

    assert project(record, Target(gpu=H100), others).basis == "table of peaks"


@pytest.mark.parametrize(
    "spoilt",
    [
        {"params": {"max_seq_len": "2048"}},
        {"params": {"quality_examples": "0"}},
        {"tags": {"gpu_count": "2"}},
        {"tags": {"data_digest": "other"}},
        {"tags": {"stopped_early": "10 of 40"}},
        {"tags": {"energy_valid": "false"}},
        {"tags": {"green_tune.reused": "abc"}},
        {"tags": {"energy_flags": "shared with other measured runs, split equally, for 1 s"}},
        {"status": "FAILED"},
        {"kind": "trial"},
    ],
)
def test_runs_of_other_work_or_cut_short_are_no_pair(spoilt: dict[str, object]) -> None:
    here, there = paired([0.1])
    known: dict[str, object] = {"params": here.params, "tags": there.tags}
    changed = {k: {**known[k], **v} if isinstance(v, dict) else v for k, v in spoilt.items()}  # type: ignore[dict-item]
    assert transfer.pairs(measured(), "h100", [here, there])

    assert not transfer.pairs(measured(), "h100", [here, replace(there, **changed)])  # type: ignore[arg-type]


def test_seeds_of_the_same_work_are_one_pair_of_their_geometric_means() -> None:
    here, there = paired([0.1])
    slower = of_task("task 0", "h100", 3.0 * 0.4)
    again = replace(slower, params={**slower.params, "seed": "7"})

    found = transfer.pairs(measured(), "h100", [here, there, again])

    assert [pair.time for pair in found] == [pytest.approx(0.2)]


def test_each_pair_is_left_out_in_turn_for_the_error() -> None:
    found = project(measured(), Target(gpu=H100), paired([0.1, 0.2]))

    each = found.energy_kwh - 0.002
    assert each == pytest.approx(0.12 * math.sqrt(0.02))
    assert found.energy_high_kwh == pytest.approx(0.002 + 2 * each)  # one is twice the other
    assert "pair left out in turn" in found.notes[1]
    assert "75% on average, 100% at most" in found.notes[1]


def test_with_two_base_models_all_of_one_are_left_out() -> None:
    family = {"model_family": "gemma"}
    small = paired([0.1, 0.1], base_model="gemma-1b", **family)
    large = paired([0.4, 0.4], base_model="gemma-7b", **family)

    found = project(measured(model_family="gemma"), Target(gpu=H100), [*small, *large])

    assert "Each base model left out" in found.notes[1]
    assert found.energy_high_kwh == pytest.approx(0.002 + 0.12 * 0.2 * 4)


def test_from_nine_pairs_on_the_range_is_conformal() -> None:
    ratios = [0.1 * math.exp(0.05 * (-1) ** i) for i in range(10)]

    found = project(measured(), Target(gpu=H100), paired(ratios))

    width = (found.energy_high_kwh - 0.002) / (found.energy_kwh - 0.002)
    assert 1.05 < width < 1.07  # below what is assumed where there are few
    assert "at 90 % by these errors" in found.notes[1]


def test_without_a_pair_the_table_of_peaks_answers_and_says_how_roughly() -> None:
    record = measured()
    record = replace(record, metrics={**record.metrics, **WORK.to_metrics()})

    found = project(record, Target(gpu=A100), [])

    assert found.basis == "table of peaks"
    assert found.notes[0] == "Order of magnitude."
    ratio = transfer.time_ratio(
        T4, A100, "bf16", transfer.flop_per_byte(WORK, record.metrics["base_parameters"], "bf16")
    )
    assert found.runtime_h == pytest.approx(0.1 + 2.0 * ratio)
    assert 65 / 312 < ratio < 320 / 1555 or 320 / 1555 < ratio < 65 / 312
    assert found.energy_high_kwh - 0.002 == pytest.approx(3 * (found.energy_kwh - 0.002))


def test_what_computes_much_for_each_byte_goes_with_the_peak_and_else_with_the_bandwidth() -> None:
    def ratio(intensity: float | None) -> float:
        return transfer.time_ratio(L4, A100, "bf16", intensity)

    assert ratio(1e9) == pytest.approx(121 / 312)
    assert ratio(1e-9) == pytest.approx(300 / 1555)
    assert ratio(None) == pytest.approx(math.sqrt(121 / 312 * 300 / 1555))
    assert ratio(312e12 / 1555e9) == pytest.approx(ratio(None))  # the ridge


def test_where_there_is_no_bf16_the_peak_is_that_of_fp16() -> None:
    assert peaks.peak_tflops(T4, "bf16") == 65
    assert peaks.peak_tflops(A100, "bf16") == 312
    assert peaks.peak_tflops(A100, "fp32") == 19.5


def test_weights_in_four_bits_move_fewer_bytes() -> None:
    def at(precision: str, quantization: str = "none") -> float:
        return transfer.flop_per_byte(WORK, 6.7e9, precision, quantization)

    assert at("fp32") < at("bf16") < at("bf16", "nf4")
    assert at("bf16") == pytest.approx(2 * at("fp32"))


def test_another_gpu_is_loaded_as_far_between_idle_and_its_limit() -> None:
    assert transfer.load(40, limit_w=70, idle_w=10) == pytest.approx(0.5)
    assert transfer.load(90, limit_w=70, idle_w=10) == 1
    assert transfer.load(5, limit_w=70, idle_w=10) == 0
    assert transfer.load(50, limit_w=50, idle_w=50) == 1
    assert transfer.power_w(A100, 1.0) == pytest.approx(400)
    assert transfer.power_w(A100, 0.0) == pytest.approx(400 * peaks.IDLE)


def test_the_power_of_each_gpu_changes_and_the_rest_of_the_machine_stays() -> None:
    one, two = measured(watts=100.0), measured(watts=100.0, gpu_count="2")

    found = [project(record, Target(gpu=A100), []) for record in (one, two)]

    kwh = 0.002 + 2 * transfer.time_ratio(T4, A100, "bf16", None) * (0.4 + 0.03)
    assert [each.energy_kwh for each in found] == [pytest.approx(kwh)] * 2  # 1 x 400, 2 x 200 W


def test_a_measured_idle_power_counts_before_the_assumed_one() -> None:
    record = measured(watts=50.0)  # 35 W of them the GPU's
    idling = replace(record, metrics={**record.metrics, "gpu_idle_w": 34.0})

    assert (
        project(idling, Target(gpu=A100), []).energy_kwh
        < project(record, Target(gpu=A100), []).energy_kwh
    )


@pytest.mark.parametrize("gpu", ["cpu", "unknown"])
def test_what_is_not_in_the_table_is_projected_by_pairs_alone(gpu: str) -> None:
    record = measured(gpu, device="Any 9000")
    other = of_task("task 0", gpu, 3.0, device="Any 9000")
    there = of_task("task 0", "h100", 0.3)

    found = project(record, Target(gpu=H100), [other, there])
    assert found.basis == "measured pair"
    assert found.runtime_h == pytest.approx(0.3)

    elsewhere = replace(other, tags={**other.tags, "device": "Any 7000"})
    with pytest.raises(ConfigError, match=r"Any 9000 says nothing of h100.*quote gpu=h100"):
        project(record, Target(gpu=H100), [elsewhere, there])


def test_a_run_without_valid_figures_is_refused() -> None:
    record = measured()
    bare = {k: v for k, v in record.metrics.items() if k not in ("energy_kwh", "emissions_kg")}
    blind = {k: v for k, v in record.metrics.items() if "gpu" not in k}
    unpriced = {k: v for k, v in record.metrics.items() if k != "emissions_kg"}

    with pytest.raises(ConfigError, match="no valid energy"):
        project(replace(record, metrics=bare), Target(), [])
    with pytest.raises(ConfigError, match="no valid energy"):
        project(measured(energy_valid="false"), Target(), [])
    with pytest.raises(ConfigError, match="is a sweep; project one of train"):
        project(replace(record, kind="sweep"), Target(), [])
    with pytest.raises(ConfigError, match="no energy of its GPU"):
        project(replace(record, metrics=blind), Target(gpu=A100), [])
    with pytest.raises(ConfigError, match="no emissions; give a country"):
        project(replace(record, metrics=unpriced), Target(), [])


def test_a_run_that_notes_no_phases_counts_as_computing() -> None:
    record = run(random.Random(0), Effects(), gpu="t4")

    found = project(record, Target(gpu=L4), [])

    ratio = transfer.time_ratio(T4, L4, "bf16", None)
    assert found.runtime_h == pytest.approx(record.metrics["runtime_h"] * ratio)


@settings(deadline=None)
@given(
    st.lists(st.floats(0.05, 20.0), max_size=12),
    st.sampled_from(GPUS),
    st.floats(0.01, 100.0),
    st.floats(20.0, 400.0),
)
def test_a_range_holds_its_figure(
    ratios: list[float], row: Gpu, took_h: float, watts: float
) -> None:
    found = project(measured(hours=took_h, watts=watts), Target(gpu=row), paired(ratios))

    assert 0 < found.runtime_low_h <= found.runtime_h <= found.runtime_high_h
    assert 0 < found.energy_low_kwh <= found.energy_kwh <= found.energy_high_kwh
    assert 0 < found.emissions_low_kg <= found.emissions_kg <= found.emissions_high_kg


def test_the_best_start_is_where_the_run_would_emit_least() -> None:
    trace = hours(300.0, 500.0, 100.0, 200.0, 400.0, 400.0)

    found = best_start(trace, 2.0, (START + timedelta(minutes=30), START + timedelta(hours=4)))

    assert found.at == START + timedelta(hours=2)
    assert found.g_per_kwh == pytest.approx(150)
    assert found.now_g_per_kwh == pytest.approx((0.5 * 300 + 500 + 0.5 * 100) / 2)
    assert found.worst_g_per_kwh == pytest.approx(400)
    assert found.saved_of_worst == pytest.approx(1 - 150 / 400)
    assert found.saved_of_now == pytest.approx(1 - 150 / 350)


def test_where_the_grid_emits_nothing_nothing_is_saved() -> None:
    found = best_start(hours(0.0, 0.0, 0.0), 1.0, (START, START + timedelta(hours=1)))

    assert (found.at, found.saved_of_now, found.saved_of_worst) == (START, 0.0, 0.0)


def test_a_best_start_needs_a_whole_trace_and_some_time() -> None:
    later = START + timedelta(hours=3)

    with pytest.raises(ConfigError, match="no intensity at 2026-01-01 03:00 UTC"):
        best_start(hours(1.0, 1.0, None, None, 1.0, 1.0, 1.0, 1.0), 1.0, (START, later))
    with pytest.raises(ConfigError, match="before the first"):
        best_start(hours(1.0), 1.0, (later, START))


def test_the_report_says_what_is_measured_and_what_is_projected() -> None:
    record = measured()
    targets = (Target(intensity=FRANCE), Target(gpu=H100), Target(gpu=A100, intensity=FRANCE))

    text = report([project(record, target, paired([0.1])) for target in targets], record)

    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "projections" in lines[0]
    assert lines[4].startswith("measured: t4")
    assert [line.split("  ")[-1].strip() for line in lines[4:8]] == [
        "the meter", "same GPU", "measured pair", "table of peaks",
    ]  # fmt: skip
    assert text.count("Projection, not measured: ") == 3
    assert "Order of magnitude" in text


def test_the_range_by_the_table_holds_nine_of_ten_public_pairs() -> None:
    every = [ratio for ratios in projecting.by_table().values() for ratio in ratios]

    assert len(every) > 50
    assert projecting.factor(every) <= transfer.TABLE_FACTOR


def test_public_pairs_carry_from_model_to_model_about_as_far_as_is_assumed() -> None:
    widest = max(transfer.DISTANCES.values())
    off = [abs(math.log(r)) for out in projecting.by_pairs().values() for r in out["model"]]

    assert sum(error <= math.log(widest) for error in off) / len(off) > 0.9


def test_the_range_by_many_pairs_holds_nine_of_ten_made_up_stores() -> None:
    done = [projecting.tried(seed, 12, 0.1)[1] for seed in range(300)]

    assert 0.85 <= sum(done) / len(done) <= 0.97


def test_the_page_of_projections_has_all_parts() -> None:
    text = projecting.page(3)

    for heading in ("By the table of peaks", "By measured pairs", "made-up stores"):
        assert heading in text
    assert json.dumps(projecting.node_energy(0.7))
    assert "lora: h100 to b200" in text
