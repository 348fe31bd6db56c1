"""The command `quote` and a GPU that is not here: bad input is one line, before anything heavy."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from test_agreement import HEAVY

from entrypoints.quote import quote
from entrypoints.train import train
from green_tune import space
from green_tune.errors import ConfigError

ROOT = Path(__file__).parents[1]
TASK = {"text": "good", "label": "positive"}
MIXTURE = {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 8,
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 100,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
PINNED = {name: "2" for name in space.SPACE} | {"learning_rate": "1e-4"}
REFUSED: list[tuple[dict[str, str], str]] = [
    ({"model": "owner/nothing"}, "model owner/nothing is not in the local cache"),
    ({"model": "mixture"}, "model=mixture cannot be quoted: its config.json does not tell"),
    ({"model": "nameless"}, "model=nameless cannot be quoted"),
    ({"gpu": "k80"}, "gpu=k80 is unknown; known: auto, cpu, t4, l4, "),
    ({"gpu": "t4,k80"}, "gpu=k80 is unknown"),
    ({"data": "empty"}, "empty/train.jsonl holds no example"),
    ({"data": "blank"}, "blank/train.jsonl:1: field 'text' is not a text, or empty"),
    ({"data": "nowhere"}, "data=nowhere is not a folder"),
    ({"probe": "sometimes"}, "probe=sometimes is not one of auto, always, never"),
    ({"probe_seconds": "0"}, "probe_seconds=0.0 is too small; at least 0.5"),
    ({"probe_seconds": "-1"}, "probe_seconds=-1.0 is too small"),
    ({"probe_seconds": "nan"}, "probe_seconds=nan is not a finite number"),
    ({"probe_seconds": "601"}, "probe_seconds=601.0 is too large; at most 600.0"),
    ({"command": "fly"}, "command=fly is not one of train, sweep, grid"),
    ({"command": "sweep"} | PINNED, "nothing is left to vary"),
    ({"emissions_budget_kg": "-1"}, "emissions_budget_kg=-1.0 is too small"),
    ({"start": "best"}, "start=best is for a measured run, elsewhere: give run= as well"),
    ({"trace": "fr.csv"}, "trace=fr.csv is for a measured run"),
    ({"run": "abc", "start": "best"}, "start=best needs trace=, hourly intensities"),
    ({"run": "abc", "trace": "fr.csv"}, "fr.csv does not exist"),
    ({"run": "abc", "gpu": "k80"}, "gpu=k80 is unknown"),
    (
        {"run": "abc", "command": "sweep"},
        "command=sweep is for what is yet to be run, not with run=",
    ),
    ({"run": "abc", "emissions_budget_kg": "1"}, "emissions_budget_kg=1 is for what is yet to be"),
    ({"run": "abc", "timeout_h": "2"}, "timeout_h=2 is for what is yet to be run"),
    ({"run": "abc", "pue": "0.5"}, "pue=0.5 is too small"),
    ({"run": "abc", "output": "taken"}, "output=taken is no folder for a quote: "),
    ({"energy_budget_kwh": "-1"}, "energy_budget_kwh=-1.0 is too small"),
    ({"output": "taken"}, "output=taken is no folder for a quote: "),
    ({"output": "taken/below"}, "output=taken/below is no folder for a quote: "),
    ({"output": "~nobody-of-this-name/q"}, "output=~nobody-of-this-name/q is no folder"),
]
AWAY: list[tuple[str, dict[str, str]]] = [
    ("train", {}),
    ("sweep", {}),
    ("grid", {}),
    ("train", {"model": "llama-2-7b", "precision": "fp32", "quantization": "none"}),
    ("train", {"data": "hub"}),
    ("train", {"model": "owner/nothing"}),
    ("train", {"data": "empty"}),
]
ONE_LINE = AWAY[4:]  # of these nothing more can be said without asking somebody


def options(asked: dict[str, str]) -> list[str]:
    return [part for name, text in asked.items() for part in (f"--{name}", text)]


def in_a_fresh_process(calls: list[tuple[str, list[str]]], **environment: str) -> list[Any]:
    """Commands one after the other: exit code, both outputs, and what each has loaded so far."""
    code = f"""if True:
        import importlib, json, sys
        from click.testing import CliRunner
        from green_tune import job
        job.nvml.find_gpus = lambda: []
        done = []
        for name, given in json.loads(sys.argv[1]):
            module = importlib.import_module("entrypoints." + name)
            found = CliRunner().invoke(getattr(module, name), given)
            loaded = [m for m in {(*HEAVY, "scipy")!r} if m in sys.modules]
            done.append([found.exit_code, found.stdout, found.stderr, loaded])
        print(json.dumps(done))
    """
    answer = subprocess.check_output(
        [sys.executable, "-c", code, json.dumps(calls)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | environment,
    )
    found: list[Any] = json.loads(answer)
    return found


def folders(place: Path) -> None:
    """Data without lengths, and base models of which too little is known."""
    for name, content in (("empty", ""), ("blank", json.dumps(TASK | {"text": " "}))):
        (place / name).mkdir()
        for split in ("train", "validation"):
            (place / name / f"{split}.jsonl").write_text(content)
    models = {"mixture": MIXTURE, "nameless": {"architectures": ["NewForCausalLM"]}}
    for name, config in models.items():
        (place / name).mkdir()
        (place / name / "config.json").write_text(json.dumps(config))
        (place / name / "tokenizer.json").write_text("{}")
    (place / "taken").write_text("")


def quoted(*given: str) -> Result:
    return CliRunner().invoke(quote, [*given, "--gpu", "cpu", "--probe", "never"])


def kinds(uri: str) -> dict[str, str]:
    """The status of each kind of run."""
    found = MlflowClient(uri).search_runs(["0"])
    return {each.data.tags["green_tune.kind"]: each.info.status for each in found}


def test_bad_input_is_one_line_before_anything_heavy_or_a_run(tmp_path: Path) -> None:
    folders(tmp_path)
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'none.db'}", "HF_HOME": str(tmp_path)}
    done = in_a_fresh_process([("quote", options(asked)) for asked, _ in REFUSED], **store)
    for (asked, line), (code, screen, error, loaded) in zip(REFUSED, done, strict=True):
        assert (code, screen, loaded) == (2, "", []), asked
        assert error.startswith(f"error: {line}"), error
        assert len(error.splitlines()) == 1, error
    assert not (tmp_path / "none.db").exists()


def test_a_store_that_nobody_answers_for_is_one_line() -> None:
    (done,) = in_a_fresh_process([("quote", [])], MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    code, screen, error, loaded = done
    assert (code, screen, loaded) == (2, "", [])
    assert error.startswith("error: nobody answers at 127.0.0.1:9")


def test_a_gpu_that_is_not_here_is_quoted_below_its_refusal(tmp_path: Path) -> None:
    folders(tmp_path)
    calls = [(name, ["--gpu", "t4", *options(asked)]) for name, asked in AWAY]
    done = in_a_fresh_process(calls)
    for (name, asked), (code, screen, error, loaded) in zip(AWAY, done, strict=True):
        assert (code, screen, loaded) == (2, "", []), asked
        first, *more = error.splitlines()
        assert first.startswith("error: gpu=t4 is not in this machine; found: no GPU"), error
        assert max(map(len, more), default=0) <= 80, error
        if (name, asked) in ONE_LINE:
            assert more == []
        elif "precision" in asked:
            assert more[0].startswith("llama-2-7b does not fit into t4")
            assert len(more) <= 5
        else:
            assert more[0].startswith("There it would need ")
            assert more[-1].endswith(f"mlflow run . -e quote -P command={name} -P gpu=t4")
            assert " kWh" in error
            assert len(more) <= 6
    assert not list(tmp_path.glob("*.db"))


def test_examples_that_do_not_fit_into_the_length_are_one_line(store_uri: str) -> None:
    Path("long").mkdir()
    row = TASK | {"label": "very " * 40}
    for split in ("train", "validation"):
        Path(f"long/{split}.jsonl").write_text(json.dumps(row))
    done = quoted("--data", "long", "--max_seq_len", "16")
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: not one example fits into max_seq_len=16 tokens")
    assert kinds(store_uri) == {"quote": "FAILED"}


def test_a_run_that_is_not_in_the_store_is_one_line(store_uri: str) -> None:
    done = CliRunner().invoke(quote, ["--run", "0123456789abcdef"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "error: run=0123456789abcdef is not in the store\n"
    assert kinds(store_uri) == {}


def test_in_an_empty_store_the_table_answers(store_uri: str) -> None:
    budgets = (
        "--emissions_budget_kg",
        "1e-9",
        "--energy_budget_kwh",
        "1e-9",
        "--timeout_h",
        "1e-9",
    )
    done = quoted("--output", "quote", "--max_train_examples", "8", *budgets)
    assert done.exit_code == 0, done.output
    assert "rests on   rates assumed of a CPU: an order of magnitude" in done.stdout
    assert "counted with" in done.stdout
    for least in ("1e-06 g", "1e-09 kWh", "1e-09 h"):
        assert f"on cpu: over the budget of {least} by " in done.stdout
    assert "at the price of cpu" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.split("\nthis quote itself took")[0].splitlines())) <= 80
    assert kinds(store_uri) == {"quote": "FINISHED"}
    (row,) = json.loads(Path("quote/quote.json").read_text())
    (run,) = MlflowClient(store_uri).search_runs(["0"])
    for name in ("runtime_h", "energy_kwh", "emissions_high_kg"):
        assert run.data.metrics[f"quote.{name}"] == pytest.approx(row[name])
    assert run.data.metrics["emissions_kg"] > 0


def test_a_proposal_that_is_taken_is_within_the_budget(store_uri: str) -> None:
    """Its own quote says so, in grams."""
    many = ["--epochs", "100", "--quality_examples", "0"]
    dear = quoted(*many)
    grams = float(_line(dear.stdout, "emissions ").split()[1])
    budget_kg = f"{0.9 * grams / 1000:.3g}"
    proposed = _line(quoted(*many, "--emissions_budget_kg", budget_kg).stdout, "  epochs=")
    epochs = proposed.split("epochs=")[1].split()[0]
    taken = quoted("--epochs", epochs, *many[2:], "--emissions_budget_kg", budget_kg)
    assert 0 < int(epochs) < 100
    assert f"within the budget of {float(budget_kg) * 1000:.3g} g" in taken.stdout


def test_a_gpu_without_a_row_trains_without_a_quote(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_row(_: object) -> None:
        raise ConfigError("it is not in the table of GPUs")

    monkeypatch.setattr("green_tune.evidence.table", no_row)
    small = {"gpu": "cpu", "max_train_examples": "8", "max_eval_examples": "4", "evals": "1"}
    done = CliRunner().invoke(train, options(small | {"quality_examples": "0"}))
    assert done.exit_code == 0, done.output
    (run,) = MlflowClient(store_uri).search_runs(["0"])
    assert run.data.metrics["emissions_kg"] > 0
    assert not [name for name in run.data.metrics if name.startswith("quote.")]


def _line(screen: str, start: str) -> str:
    (line,) = (line for line in screen.splitlines() if line.startswith(start))
    return line
