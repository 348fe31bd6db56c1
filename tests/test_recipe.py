"""A recipe: what is written beside the weights is what the job was, and a reader accepts it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from parcels import save_adapter

from green_tune import parcel, predictor, recipe
from green_tune.job import Job
from green_tune.models import Source

MakeJob = Callable[..., Job]
FIELDS = {"sentiment": ["text"], "qa": ["context", "question"], "summarization": ["document"]}


@pytest.mark.parametrize("task", FIELDS)
def test_the_answer_is_no_field_of_an_input_and_the_prompt_is_the_trainings(
    make_job: MakeJob, task: str
) -> None:
    job = make_job(task=task)
    made = recipe.of(job)
    assert made["fields"] == FIELDS[task]
    text = {name: f"some {name}" for name in made["fields"]}
    head, body, tail = made["template"]
    filled = (head + text[body] + tail).format(**text)
    assert filled == "".join(predictor._parts(made["template"], text))
    assert made["labels"] == (["negative", "positive"] if task == "sentiment" else [])


def test_the_built_base_model_is_named_by_its_folder_and_what_is_in_it(make_job: MakeJob) -> None:
    base = recipe.of(make_job())["base"]
    assert base["kind"] == "built"
    assert base["revision"] == ""
    assert Path(base["place"]).is_absolute()
    assert base["digest"] == predictor.digest(Path(base["place"]))


def test_one_of_the_hub_has_no_folder_of_ours() -> None:
    assert recipe.folder_of(Source(name="gemma-2b", kind="hub", place="google/gemma-2b")) is None


def test_what_is_written_is_accepted_beside_an_adapter_of_its_base(
    make_job: MakeJob, tmp_path: Path
) -> None:
    made = recipe.of(make_job(precision="fp32"))
    folder = save_adapter(tmp_path / "adapter")
    config = json.loads((folder / parcel.CONFIG).read_text())
    config["base_model_name_or_path"] = made["base"]["place"]
    (folder / parcel.CONFIG).write_text(json.dumps(config))
    recipe.write(made, folder)
    assert parcel.check_recipe(folder) == made


def test_text_of_any_language_stands_as_it_is(tmp_path: Path) -> None:
    recipe.write({"labels": ["schön", "良い"]}, tmp_path)
    assert "schön" in (tmp_path / recipe.NAME).read_text(encoding="utf-8")
    assert json.loads((tmp_path / recipe.NAME).read_bytes()) == {"labels": ["schön", "良い"]}
