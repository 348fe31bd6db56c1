"""The commands `predict` and `evaluate` on a real adapter: what they read, write, print, refuse."""

import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from synthetic import Effects
from synthetic import run as made_up
from test_experiment import run as trained

from entrypoints import evaluate as evaluate_command
from entrypoints.evaluate import evaluate
from entrypoints.predict import predict
from entrypoints.promote import promote
from entrypoints.pull import pull
from green_tune import job as jobs
from green_tune import predictor
from green_tune.appraisal import Appraisal, Predicted
from green_tune.config import TrainConfig
from green_tune.data import Split
from green_tune.query import Query
from green_tune.registry import Registry
from green_tune.tracking import Tracker
from green_tune.versions import QUALITY_ON, Version

# MLflow's own, at the first import of its pyfunc in a process.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")

ROOT = Path(__file__).parents[1]
NAME = "tiny-sentiment"
SMALL: dict[str, Any] = {"gpu": "cpu", "max_train_examples": 48, "max_eval_examples": 12,
                         "evals": 1}  # fmt: skip


@pytest.fixture(scope="module")
def home(_cache: None, _migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, a registered adapter, and the same one pulled."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "mlflow.db").write_bytes(_migrated.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GREEN_TUNE_METERS", str(folder / "meters"))
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        job = jobs.prepare(TrainConfig(quality_examples=8, **SMALL))
        run_id = trained(job, f"sqlite:///{folder / 'mlflow.db'}")
        done(promote, rule=run_id, alias="best")
        done(pull, adapter=f"{NAME}@best", output=str(folder / "pulled"))
    return folder


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The store of this module, in every test's environment; its address."""
    uri = f"sqlite:///{home / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def asked(command: Any, **options: str) -> Result:
    words = [word for name, text in options.items() for word in (f"--{name}", text)]
    return CliRunner().invoke(command, words)


def done(command: Any, **options: str) -> str:
    """What a command printed that went well."""
    result = asked(command, **options)
    assert result.exit_code == 0, result.output
    return result.stdout


def error(command: Any, **options: str) -> str:
    """The one line on the screen of a command that was refused."""
    result = asked(command, **options)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def predictions(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def version(uri: str) -> Version:
    return Registry(uri).version(NAME, "best")


def test_a_text_has_the_same_answer_by_every_name_of_the_adapter(home: Path, at_home: str) -> None:
    names = [
        NAME, f"{NAME}@best", f"{NAME}/1", f"models:/{NAME}@best", version(at_home).run_id,
        str(home / "pulled"), str(home / "pulled" / "adapter"),
    ]  # fmt: skip
    answers = [done(predict, adapter=name, text="Ein schöner Tag 😀") for name in names]
    assert set(answers) == {answers[0]}
    assert answers[0].strip() in ("negative", "positive")


TEXTS = ["A good day", "Ein schöner, heller Tag 😀"]
FILES = {
    "plain.txt": "A good day\n\nEin schöner, heller Tag 😀",
    "windows.txt": "\ufeffA good day\r\n\r\nEin schöner, heller Tag 😀\r\n",
    "plain.csv": 'text,n\nA good day,1\n"Ein schöner, heller Tag 😀",2\n',
    "windows.csv": '\ufefftext,n\r\nA good day,1\r\n\r\n"Ein schöner, heller Tag 😀",2\r\n',
    "plain.jsonl": '{"text": "A good day"}\n"Ein sch\\u00f6ner, heller Tag 😀"\n',
    "windows.jsonl": '\ufeff{"text": "A good day"}\r\n\r\n"Ein schöner, heller Tag 😀"\r\n',
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_any_kind_is_read_as_the_same_texts_and_each_row_keeps_what_it_had(
    home: Path, name: str
) -> None:
    Path(name).write_bytes(FILES[name].encode())
    rows = predictions(done(predict, adapter=str(home / "pulled"), input=name))
    assert [row.get("text", row.get("input")) for row in rows] == TEXTS
    assert all(row["prediction"] in ("negative", "positive") for row in rows)
    if name.endswith(".csv"):
        assert [row["n"] for row in rows] == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"txt\nhello\n", "row 1 has no 'text': each row needs text"),
        ("a.csv", b"text\nhello,more\n", "a.csv:2: more cells than the first line has names"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "row 2 has no 'text'"),
        ("a.jsonl", b'{"text": 5}\n', "row 1: 'text' is not a text, or empty"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text"\n', "a.jsonl:3: not a JSON line"),
        ("a.txt", b"\xff\xfeh\x00i\x00", "a.txt cannot be read: 'utf-8' codec"),
        ("a.txt", b"\n \n", "input=a.txt is empty"),
        ("a.csv", b"text\n", "input=a.csv is empty"),
    ],
)
def test_a_file_that_cannot_be_predicted_is_one_line_before_any_model_is_loaded(
    home: Path, name: str, content: bytes, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "Predictor", lambda *_, **__: 1 / 0)
    Path(name).write_bytes(content)
    assert says in error(predict, adapter=str(home / "pulled"), input=name)


@pytest.mark.parametrize("output", ["no/such/folder/x.jsonl", ".", "~nobody-of-this-name/x"])
def test_a_place_that_cannot_be_written_is_said_before_any_work(output: str) -> None:
    assert f"output={output} cannot be written" in error(
        predict, adapter="nowhere", text="x", output=output
    )


def test_a_file_is_written_when_there_is_something_to_write_and_stays_as_it_was_before(
    home: Path,
) -> None:
    out = Path("out.jsonl")
    error(predict, adapter="nowhere", text="x", output="new.jsonl")
    assert not Path("new.jsonl").exists()
    out.write_text("of yesterday")
    error(predict, adapter="nowhere", text="x", output=str(out))
    assert out.read_text() == "of yesterday"
    said = done(predict, adapter=str(home / "pulled"), text="schön", output=str(out))
    assert said == "1 predictions: out.jsonl\n"
    (row,) = predictions(out.read_text(encoding="utf-8"))
    assert row["input"] == "schön"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "adapter= is needed"),
        ({"adapter": "x"}, "one of text= and input= is needed"),
        ({"adapter": "x", "text": "a", "input": "b"}, "one of text= and input= is needed"),
        ({"adapter": "x", "input": "none.csv"}, "input=none.csv cannot be read: No such file"),
        ({"adapter": "tiny-sentimen", "text": "a"}, f"did you mean {NAME}?"),
    ],
)
def test_what_is_missing_is_one_line(options: dict[str, str], says: str) -> None:
    assert says in error(predict, **options)


def broken(home: Path, change: dict[str, Any]) -> str:
    """A copy of the pulled adapter whose recipe says something else."""
    folder = Path("broken")
    folder.mkdir()
    for path in (home / "pulled" / "adapter").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    recipe = json.loads((folder / "recipe.json").read_text())
    base = recipe["base"] | change.pop("base", {})
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base["place"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "recipe.json").write_text(json.dumps(recipe | {"base": base} | change))
    return str(folder)


@pytest.mark.parametrize("command", [predict, evaluate])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "made by a newer green-tune"),
        ({"template": "x"}, "recipe.json"),
        ({"base": {"place": "/nowhere/tiny-0"}}, "the base model tiny is not in /nowhere/tiny-0"),
        ({"base": {"digest": "0" * 32}}, "holds another model or revision"),
    ],
)
def test_a_recipe_that_is_broken_or_a_base_model_that_is_not_its_own_is_one_line(
    home: Path, command: Any, change: dict[str, Any], says: str
) -> None:
    more = {"text": "x"} if command is predict else {"data": "sample", "examples": "2"}
    assert says in error(command, adapter=broken(home, dict(change)), **more)


def test_an_adapter_of_another_base_model_is_one_whole_sentence(home: Path) -> None:
    from green_tune import tiny

    wide = tiny.folder("tiny-wide")
    base = {"name": "tiny-wide", "place": str(wide), "digest": predictor.digest(wide)}
    said = error(predict, adapter=broken(home, {"base": base}), text="x")
    assert f"the adapter does not fit on {wide}" in said
    assert "size mismatch" in said


def test_a_reader_that_has_enough_ends_the_command_without_a_traceback(home: Path) -> None:
    Path("many.txt").write_text("a rather good text of some length\n" * 3000)
    command = [sys.executable, "-m", "entrypoints.predict", "--adapter", str(home / "pulled")]
    with subprocess.Popen(
        [*command, "--input", "many.txt"], env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert predictions(first)[0]["prediction"]


def test_an_evaluation_is_a_run_and_its_versions_tags_say_on_what(at_home: str) -> None:
    tracker = Tracker(at_home)
    before = tracker.find(Query(parts=True))
    said = done(evaluate, adapter=f"{NAME}@best", examples="4", country="FRA")
    assert f"{NAME}@best on sample test, 4 examples" in said
    assert re.search("^energy (modelled|measured|.* % measured)", said, re.MULTILINE)
    assert re.search("^energy modelled\ncarbon intensity France at", said, re.MULTILINE)
    assert tracker.find(Query(parts=True)) == before
    run = max(tracker.find(Query(kinds=("evaluate",))), key=lambda record: record.started)
    tags = version(at_home).tags
    assert tags[QUALITY_ON] == run.tags[QUALITY_ON] == "sample test"
    assert float(tags["quality.accuracy"]) == run.metrics["quality.accuracy"]
    assert run.run_id in said


def test_an_evaluation_on_other_data_never_comes_onto_a_card(at_home: str, home: Path) -> None:
    from green_tune import promotion
    from green_tune.choice import Chosen
    from green_tune.points import every

    Path("mine.jsonl").write_text('{"text": "x", "label": "positive"}\n')
    mine = version(at_home)
    done(evaluate, adapter=mine.run_id, data="mine.jsonl")
    tracker = Tracker(at_home)
    record = tracker.get(mine.run_id)
    point = every([record])[-1]
    chosen = Chosen(point=point, rules=(), front=(point.pair,))
    found = promotion.origin(chosen, record, "", tracker.find).evaluation
    assert found is None or found.params["data"] != "mine.jsonl"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "data= is needed: a folder with an adapter does not say its data"),
        ({"data": "sample", "split": "typo"}, "split=typo: sample has train, validation, test"),
        ({"data": "nowhere"}, "data=nowhere is not a folder"),
        ({"data": "sample", "pue": "0.5"}, "pue=0.5 is too small"),
        ({"data": "sample", "examples": "-1"}, "examples=-1 is too small"),
    ],
)
def test_an_evaluation_that_cannot_be_is_one_line_and_no_run(
    home: Path, at_home: str, options: dict[str, str], says: str
) -> None:
    before = len(Tracker(at_home).find(Query(kinds=("evaluate",))))
    assert says in error(evaluate, adapter=str(home / "pulled"), **options)
    assert len(Tracker(at_home).find(Query(kinds=("evaluate",)))) == before


@pytest.mark.parametrize(
    ("scores", "trivial"),
    [
        (("accuracy", "f1"), "majority (neither-here-nor-there)"),
        (("exact_match", "f1"), "lead (first sentence)"),
        (("rouge1", "rouge2", "rougeL"), "lead-3"),
    ],
)
def test_the_table_of_every_task_fits_80_columns_whatever_the_adapter_is_called(
    scores: tuple[str, ...], trivial: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    record = made_up(random.Random(0), Effects())
    record = replace(record, metrics={**record.metrics, "energy_modelled_share": 0.4})
    made = Predicted(
        texts=[], scores=dict.fromkeys(scores, 0.123456), energy_kwh=1e-3, runtime_h=1e-2
    )
    found = Appraisal(adapter=made, base=made, trivial=made.scores, trivial_name=trivial, count=256)
    split = Split(source="sample test", rows=[], examples=[])
    text = evaluate_command._table("a-" * 100, found, record, split)
    first, *rest = text.splitlines()
    assert first == f"{'a-' * 100} on sample test, 256 examples"
    assert max(map(len, rest)) <= 80
    assert text.count("0.123") == 3 * len(scores)


def test_every_tag_of_a_version_is_documented_and_every_documented_one_is_written(
    at_home: str,
) -> None:
    text = (ROOT / "docs" / "schema.md").read_text().partition("## The model registry")[2]
    table = text.partition("| tag of a version |")[2]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    documented = {key for cell in cells for key in cell.split("`")[1::2]}
    written = {name for name in version(at_home).tags if not name.startswith("mlflow.")}
    assert written <= documented
    only = r"(start_)?quality\.(exact_match|rouge)|green_tune\.study|study_emissions_kg"
    assert {name for name in documented - written if not re.match(only, name)} == set()


def test_every_file_of_a_version_is_documented() -> None:
    from green_tune import parcel

    text = (ROOT / "docs" / "schema.md").read_text().partition("## The model registry")[2]
    table = text.partition("| file |")[2].partition("Aliases:")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {key for cell in cells for key in cell.split("`")[1::2]} == parcel.OF_VERSION
