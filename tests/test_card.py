"""The green card: read back by the hub's own class, in grams, harmless, and true to its run."""

import contextlib
import io
import json
import math
import random
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from synthetic import Effects, run

from green_tune import card, sci
from green_tune import facts as known
from green_tune.config import TrainConfig
from green_tune.facts import CardFacts, Predictions, Quality, Study
from green_tune.results import RunRecord

COMMIT = "01c7f73d771dfac7d292323805ebc428287df4f9"
GPU = {
    "gpu_type": "a100-40", "device": "NVIDIA A100-SXM4-40GB, 40 GiB", "base_model": "llama-2-7b",
    "base_model_commit": COMMIT, "intensity_zone": "France", "intensity_g_per_kwh": "56.039",
    "intensity_assumed": "false", "intensity_source": "CodeCarbon's table, 2023", "pue": "1.2",
    "energy_cpu_method": "modelled: from CPU load", "energy_ram_method": "modelled: watts by size",
    "energy_gpu_method": "measured: NVML's energy counter", "version.green_tune": "0.1.0",
}  # fmt: skip
CPU = {
    **GPU, "gpu_type": "cpu", "device": "Intel(R) Xeon(R), 2 threads, 24 GiB", "base_model": "tiny",
    "intensity_zone": "world average", "intensity_g_per_kwh": "475.0", "intensity_assumed": "true",
    "intensity_source": "IEA 2019", "pue": "1.0", "energy_gpu_method": "none: no GPU was used",
}  # fmt: skip
QA = {
    "format": 1, "task": "qa", "fields": ["context", "question"],
    "template": ["Context: ", "context", "\nQuestion: {question}\nAnswer:\n"],
    "quality": "answers", "labels": [], "max_new_tokens": 6, "max_seq_len": 512,
    "precision": "fp32",
}  # fmt: skip
HUB = {"name": "llama-2-7b", "kind": "hub", "place": "meta-llama/Llama-2-7b-hf",
       "revision": COMMIT, "digest": ""}  # fmt: skip
BUILT = {"name": "tiny", "kind": "built", "place": "/somewhere/tiny", "revision": "", "digest": "1"}
HOSTILE = (
    "a|b`c`\n---\nx: y\n```\n# ![p](http://x) <img src=x> \"q\" 's' {z} %d $e$ \x85\u2028\x1b[0m é"
)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def record(tags: Mapping[str, str] = GPU, **params: str) -> RunRecord:
    one = run(random.Random(3), Effects())
    kwh, kg = one.metrics["energy_kwh"], one.metrics["emissions_kg"]
    phases = {f"{phase}/energy_kwh": kwh / 3 for phase in ("setup", "train", "eval")}
    phases |= {f"{phase}/emissions_kg": kg / 3 for phase in ("setup", "train", "eval")}
    asked = TrainConfig(task="qa", model="llama-2-7b", data="hub").to_params()
    return replace(
        one,
        params={**asked, "plan.precision": "bf16", "plan.reasons": "a CPU", **params},
        tags={**one.tags, **tags},
        metrics={**one.metrics, **phases},
    )


def facts(of: RunRecord | None = None, base: Mapping[str, str] = HUB, **more: Any) -> CardFacts:
    one = of or record()
    bare = CardFacts(
        model_name="llama-2-7b-qa",
        recipe={**QA, "base": base},
        record=one,
        val_loss=one.metrics["val_loss"],
        emissions_kg=one.metrics["emissions_kg"],
        emissions_low_kg=one.metrics["emissions_low_kg"],
        emissions_high_kg=one.metrics["emissions_high_kg"],
    )
    return replace(bare, **more)


def full(of: RunRecord | None = None, **more: Any) -> CardFacts:
    site = sci.Site(g_per_kwh=475.0, gpu_type="t4", device="Tesla T4, 15 GiB")
    return facts(
        of,
        study=Study(name="nightly", emissions_kg=3.25, energy_kwh=7.5, trials=40),
        quality=Quality(
            adapter={"exact_match": 0.5125, "f1": 0.75},
            base={"exact_match": 0.01, "f1": 0.06},
            examples=256,
            split="test",
        ),
        predictions=Predictions(
            energy_kwh=0.01, runtime_h=0.2, count=500, modelled_share=0.25, site=site
        ),
        examples=87_599,
        alias="best",
        link="https://example.org/#/experiments/0/runs/1?workflowType=machine_learning",
        **more,
    )


def data_of(text: str) -> Any:
    return ModelCard(text).data


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every table, as a reader of the page sees them."""
    found: list[list[list[str]]] = []
    for token in MarkdownIt("commonmark", {"html": False}).enable("table").parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and token.level == 4 and found:
            found[-1][-1].append("".join(part.content for part in token.children or []))
    return found


def code(text: str, language: str) -> list[str]:
    parsed = MarkdownIt("commonmark", {"html": False}).parse(text)
    return [token.content for token in parsed if token.type == "fence" and token.info == language]


def headings(text: str) -> list[str]:
    tokens = MarkdownIt("commonmark", {"html": False}).parse(text)
    return [b.content for a, b in pairwise(tokens) if a.type == "heading_open"]


def asked(command: str) -> dict[str, str]:
    """The params of a command line, as a shell and `mlflow run` would read them."""
    words = shlex.split(command.splitlines()[-1] if command.startswith("git") else command)
    assert words[:5] == ["mlflow", "run", ".", "-e", "train"]
    assert set(words[5::2]) == {"-P"}
    return dict(word.split("=", 1) for word in words[6::2])


SECTIONS = [
    "Use it", "What it cost", "Software Carbon Intensity", "Quality", "Data", "Hyperparameters",
    "Reproduce it", "Limits",
]  # fmt: skip


@pytest.mark.parametrize("tags", [GPU, CPU])
def test_the_hubs_own_class_reads_the_emissions_in_grams_with_all_companions(
    tags: dict[str, str], tmp_path: Path
) -> None:
    one = full(record(tags))
    (tmp_path / "README.md").write_text(card.make(one), encoding="utf-8")
    loaded: Any = ModelCard.load(tmp_path / "README.md").data
    read = loaded.co2_eq_emissions
    assert read["emissions"] == 1000 * one.record.metrics["emissions_kg"]
    assert set(read) == {
        "emissions", "source", "training_type", "geographical_location", "hardware_used",
    }  # fmt: skip
    assert all(read.values())
    assert read["training_type"] == "fine-tuning"
    assert tags["energy_cpu_method"] in read["source"]
    assert tags["intensity_source"] in read["source"]


@given(st.floats(1e-12, 1e6))
def test_grams_are_the_kilograms_to_the_last_digit_however_small(emissions_kg: float) -> None:
    data = data_of(card.make(facts(emissions_kg=emissions_kg)))
    assert data.co2_eq_emissions["emissions"] == 1000 * emissions_kg


def test_a_place_is_named_only_where_somebody_has_named_it() -> None:
    def place(tags: Mapping[str, str]) -> str:
        data = data_of(card.make(facts(record(tags))))
        return str(data.co2_eq_emissions["geographical_location"])

    assert place(GPU) == "France"
    assert place(CPU) == "not stated"
    assert place({**GPU, "intensity_zone": "given"}) == "not stated"


def test_results_are_read_back_as_they_were_and_the_base_models_are_none_of_them() -> None:
    one = full()
    results = data_of(card.make(one)).eval_results
    found = {(r.metric_type, r.dataset_split): r.metric_value for r in results}
    assert found == {
        ("loss", "validation"): one.val_loss,
        ("exact_match", "test"): 0.5125,
        ("f1", "test"): 0.75,
    }
    assert {r.dataset_type for r in results} == {"rajpurkar/squad"}


def test_a_base_model_of_the_hub_is_linked_and_a_local_one_is_only_named() -> None:
    data = data_of(card.make(facts()))
    assert (data.base_model, data.base_model_relation) == (HUB["place"], "adapter")
    assert data.datasets == ["rajpurkar/squad"]
    local = card.make(facts(record(CPU, data="sample"), BUILT))
    read = data_of(local)
    assert (read.base_model, read.get("base_model_relation"), read.datasets) == (None, None, None)
    assert "A LoRA adapter on tiny for qa" in local
    assert "/somewhere" not in local


def test_a_card_has_every_section_whatever_is_known() -> None:
    bare = replace(record(), metrics={"val_loss": 1.0, "emissions_kg": 0.1}, tags={}, params={})
    without = facts(emissions_low_kg=None, emissions_high_kg=None)
    for one in (full(), full(record(CPU)), facts(), replace(without, record=bare)):
        assert headings(ModelCard(card.make(one)).text)[1:] == SECTIONS


def test_what_is_not_known_is_said_and_how_to_measure_it() -> None:
    bare, whole = card.make(facts(alias="best")), card.make(full())
    command = "mlflow run . -e evaluate -P adapter=llama-2-7b-qa@best\n"
    assert code(bare, "sh").count(command) == 2
    assert command not in code(whole, "sh")
    assert "whole sweep" not in bare


def test_the_sweeps_whole_cost_stands_beside_the_winners_own() -> None:
    one = full()
    sums = tables(card.make(one))[0]
    own = [known.energy(one.energy_kwh), known.mass(one.emissions_kg)]
    assert sums[1] == ["this adapter", *own]
    assert sums[2][0] == "its bounds"
    assert sums[3] == ["the whole sweep nightly, 40 trials", "7.5 kWh", "3.25 kg"]


def test_an_adapter_on_the_way_has_its_own_cost_beside_its_runs_and_no_bounds() -> None:
    kg = record().metrics["emissions_kg"] / 4
    way = facts(step=20, place="checkpoints/step-20", emissions_kg=kg, emissions_low_kg=None,
                emissions_high_kg=None)  # fmt: skip
    text = card.make(way)
    assert [row[0] for row in tables(text)[0]] == ["what", "this adapter", "its whole run"]
    assert way.energy_kwh == pytest.approx(record().metrics["energy_kwh"] / 4)
    assert "at step 20" in text
    assert "confidence" not in text
    assert way.sci is not None
    assert way.sci.operational_g / 1.2 / 56.039 == pytest.approx(way.energy_kwh)
    assert data_of(text).co2_eq_emissions["emissions"] == 1000 * kg


def test_a_reader_learns_of_sessions_flags_and_figures_that_were_taken_over() -> None:
    more = {
        "green_tune.sessions": "3", "energy_flags": "paused for 2 s", "green_tune.reused": "0a1",
        "stopped_early": "after step 5 of 9", "green_tune.stopped": "dominated by #1",
    }  # fmt: skip
    text = card.make(facts(record({**GPU, **more})))
    for said in ("in 3 sessions", "paused for 2 s", "earlier, equal run, 0a1",
                 "after step 5 of 9 (dominated by #1)"):  # fmt: skip
        assert said in text
    assert "sessions" not in card.make(facts())


def test_every_term_of_both_intensities_is_there_and_multiplies_to_the_figure() -> None:
    one = full()
    found = [table for table in tables(card.make(one)) if table[0][0] == "term"]
    signs = ["E", "I", "TE", "TiR", "EL", "RR / ToR", "M", "R"]
    assert [[row[0] for row in table[1:]] for table in found] == [signs, signs]
    assert one.predictions is not None
    for table, own in zip(found, (one.sci, one.predictions.sci), strict=True):
        value = {row[0]: float(row[2].split()[0]) for row in table[1:]}
        m = 1000 * value["TE"] * value["TiR"] / value["EL"] * value["RR / ToR"]
        assert own is not None
        assert (value["E"] * value["I"] + m) / value["R"] == pytest.approx(own.per_unit_g, rel=2e-3)
        assert value["M"] == pytest.approx(m, rel=2e-3)
    assert found[1][1][3] == "75 % measured, 25 % modelled, on 500 predictions"


def test_the_adapters_quality_stands_beside_the_base_models() -> None:
    one = full()
    (found,) = [
        table for table in tables(card.make(one)) if table[0][1:] == ["adapter", "base model"]
    ]
    start = f"{one.record.metrics['start_val_loss']:.4g}"
    assert [row[1:] for row in found[1:]] == [
        [f"{one.val_loss:.4g}", start], ["0.5125", "0.01"], ["0.75", "0.06"],
    ]  # fmt: skip


def test_an_assumed_intensity_is_called_so_on_the_page_and_in_words() -> None:
    assumed, stated = full(record(CPU)), full()
    assert "assumed: world average at 475 g/kWh" in known.words(assumed)
    assert "The carbon intensity is assumed" in card.make(assumed)
    assert "The carbon intensity is assumed" not in card.make(stated)
    assert "France at 56.039 g/kWh x PUE 1.2" in card.make(stated)


@pytest.mark.parametrize("name", ["a" * 300, HOSTILE, "---", "- a", "|", "\n\n```sh\nrm x\n```\n"])
def test_names_that_are_markup_break_neither_metadata_nor_tables_nor_code(name: str) -> None:
    quality = Quality(adapter={name: 0.5}, base={}, examples=3, split=name)
    study = Study(name=name, emissions_kg=1.0, energy_kwh=2.0, trials=3)
    bad = record({**GPU, "device": name, "base_model": name, "intensity_source": name,
                  "intensity_zone": name, "energy_flags": name, "energy_cpu_method": name,
                  "green_tune.reused": name, "mlflow.source.git.commit": name},
                 model=name, data=name, country=name)  # fmt: skip
    one = facts(
        bad, {**BUILT, "name": name}, model_name=name, quality=quality, study=study, link=name
    )
    read, tame = ModelCard(card.make(one)), ModelCard(card.make(full(bad)))
    assert headings(read.text)[1:] == SECTIONS
    metadata: Any = read.data
    assert metadata.model_name == known.line(name)
    assert metadata.co2_eq_emissions["geographical_location"] == known.line(name)
    for text in (read.text, tame.text):
        assert all(len(row) == len(table[0]) for table in tables(text) for row in table)
        assert MarkdownIt("commonmark").render(text).count("<img") == 1  # its label
    assert len(code(read.text, "sh")) == len(code(card.make(facts()), "sh")) - 1  # quality is known
    for source in code(read.text, "python"):
        compile(source, "card", "exec")


@given(names, names)
def test_whatever_a_name_is_the_card_is_read_back(model: str, zone: str) -> None:
    text = card.make(facts(record({**GPU, "intensity_zone": zone}), model_name=model))
    assert data_of(text).model_name == known.line(model)
    assert headings(ModelCard(text).text)[-len(SECTIONS) :] == SECTIONS
    assert text.encode()


@pytest.mark.parametrize("link", ["javascript:alert(1)", "", "http://[", "sqlite:///x.db"])
def test_a_link_that_leads_to_no_page_is_none(link: str) -> None:
    assert "](" not in card.make(facts(link=link)).split("## Reproduce it")[1]


def test_the_command_gives_back_the_params_of_the_run() -> None:
    changed = {"learning_rate": "0.001", "batch_size": "16", "lora_targets": "q_proj,v_proj",
               "data": "/a folder/it's $HOME `x`", "use_dora": "true", "seed": "7"}  # fmt: skip
    one = record({**GPU, "mlflow.source.git.commit": "abc123"}, **changed)
    command = known.reproduce(one)
    assert command.splitlines()[0] == "git checkout abc123"
    params = {k: v for k, v in one.params.items() if not k.startswith("plan.")}
    assert TrainConfig.parse(asked(command)) == TrainConfig.parse({**params, "revision": COMMIT})
    default = TrainConfig().to_params()
    always = {"model", "task", "data", "seed"}
    assert all(default[k] != v for k, v in asked(command).items() if k not in always)


def test_a_command_names_model_task_data_and_seed_and_never_goes_on_in_the_old_run() -> None:
    one = replace(
        record(CPU, resume="f" * 32), params=TrainConfig().to_params() | {"resume": "0" * 32}
    )
    tags = {name: text for name, text in one.tags.items() if name != "base_model_commit"}
    command = known.reproduce(replace(one, tags=tags))
    assert asked(command) == {"model": "tiny", "task": "sentiment", "data": "sample", "seed": "0"}


def test_amounts_are_in_the_unit_that_a_reader_would_choose() -> None:
    kgs = (0.0, 2.1638e-07, 0.001, 0.9996, 1.0, 1234.5, math.nan)
    said = ["0 kg", "216 µg", "1 g", "1000 g", "1 kg", "1230 kg", "unknown"]
    assert [known.mass(kg) for kg in kgs] == said
    assert known.energy(3.861e-06) == "3.86 mWh"
    assert [known.how_known(share) for share in (0.0, 1.0, 0.25)] == [
        "measured", "modelled", "75 % measured, 25 % modelled",
    ]  # fmt: skip


def test_the_lines_of_the_card_say_what_the_adapter_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from green_tune import tiny
    from green_tune.predictor import Predictor

    base = tiny.build(tmp_path / "tiny")
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM",
                      init_lora_weights=False)  # fmt: skip
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(
        str(tmp_path / "adapter")
    )
    recipe = {**QA, "base": {**BUILT, "place": str(base), "digest": ""}}
    (tmp_path / "adapter" / "recipe.json").write_text(json.dumps(recipe))
    row = {"context": "Paris is in France.", "question": "Where is Paris?"}
    source = code(card.make(facts(record(CPU), BUILT)), "python")[1]
    for name, text in {**row, "base": str(base)}.items():
        source, changed = re.subn(f"^{name} = .*$", f"{name} = {text!r}", source, flags=re.M)
        assert changed == 1
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(source, {})
    assert (
        out.getvalue().strip() == Predictor(tmp_path / "adapter", base=str(base)).predict([row])[0]
    )
    assert out.getvalue().strip()


def test_a_line_says_what_kilograms_rest_on() -> None:
    assumed = {"intensity_zone": "world average", "intensity_assumed": "true",
               "intensity_g_per_kwh": "475.0", "pue": "1.0"}  # fmt: skip
    said = "energy modelled\ncarbon intensity assumed: world average at 475.0 g/kWh"
    assert known.basis(assumed, 1.0) == said
    stated = {"intensity_zone": "France", "intensity_g_per_kwh": "56.039", "pue": "1.2"}
    said = "energy measured\ncarbon intensity France at 56.039 g/kWh x PUE 1.2"
    assert known.basis(stated, 0.0) == said
