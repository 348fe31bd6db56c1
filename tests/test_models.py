"""What a model's name means: a row, a hub id, a folder, or one line that says what would do."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from green_tune.errors import ModelError
from green_tune.models import BUILT, MODELS, Source, config_of, resolve
from green_tune.shapes import Shape


def base_model(folder: Path, *files: str) -> Path:
    folder.mkdir(parents=True)
    for name in files or ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


def refusal(name: str) -> str:
    with pytest.raises(ModelError) as caught:
        resolve(name)
    return str(caught.value)


def test_the_study_models_are_known_by_short_names() -> None:
    assert {model.name: resolve(model.name).place for model in MODELS} == {
        "llama-2-7b": "meta-llama/Llama-2-7b-hf",
        "mistral-7b": "mistralai/Mistral-7B-v0.1",
        "gemma-2b": "google/gemma-2b",
        "gemma-7b": "google/gemma-7b",
    }


def test_a_short_name_stays_the_name_of_runs() -> None:
    assert resolve("gemma-2b") == Source(kind="hub", place="google/gemma-2b", name="gemma-2b")


@pytest.mark.parametrize("name", BUILT)
def test_tiny_is_built_here_in_two_sizes(name: str) -> None:
    assert resolve(name) == Source(kind="built", place=name, name=name)


def test_the_wider_tiny_has_the_same_recipe_and_more_parameters() -> None:
    small, wide = (config_of(resolve(name)) for name in BUILT)
    assert small is not None
    assert wide is not None
    differ = {key for key in small if small[key] != wide[key]}
    assert differ == {"hidden_size", "intermediate_size"}
    sizes = [shape.parameters for config in (small, wide) if (shape := Shape.of(config))]
    assert sizes[1] > 2 * sizes[0]


@pytest.mark.parametrize("name", ["gpt2-community/gpt2", "HuggingFaceTB/SmolLM2-135M", "a1/b_c.d"])
def test_any_hub_id_will_do(name: str) -> None:
    assert resolve(name) == Source(kind="hub", place=name, name=name)


def test_a_folder_is_named_by_its_last_part(tmp_path: Path) -> None:
    folder = base_model(tmp_path / "mine")
    assert resolve(f"{folder}/") == Source(kind="folder", place=str(folder), name="mine")


def test_a_folder_here_is_kept_by_its_full_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = base_model(tmp_path / "owner" / "name", "config.json", "tokenizer.model")
    monkeypatch.chdir(folder)
    assert resolve(".") == Source(kind="folder", place=str(folder), name="name")
    monkeypatch.chdir(tmp_path)  # a folder that exists comes before a hub id
    assert resolve("owner/name") == Source(kind="folder", place=str(folder), name="name")


def test_a_folder_under_the_home_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = base_model(tmp_path / "mine")
    assert resolve("~/mine").place == str(folder)


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        (["adapter_config.json", "tokenizer.json"], "config.json"),
        (["config.json", "model.safetensors"], "a tokenizer"),
    ],
)
def test_a_folder_that_holds_no_base_model_is_refused(
    tmp_path: Path, files: list[str], missing: str
) -> None:
    folder = base_model(tmp_path / "half", *files)
    assert refusal(str(folder)).startswith(f"model={folder} is a folder without {missing}")


@pytest.mark.parametrize("name", ["gemma", "Gemma-2B", "llama"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    line = refusal(name)
    assert line.startswith(f"model={name} is unknown; known: tiny, tiny-wide, llama-2-7b, ")
    assert line.endswith("a hub id (owner/name), or a folder")


@pytest.mark.parametrize("name", ["./mine", "/nowhere/mine", "a/b/c", "models/mine/"])
def test_a_path_that_does_not_exist_is_refused(name: str) -> None:
    assert refusal(name) == (
        f"model={name} is neither a folder that exists nor a hub id (owner/name)"
    )


@settings(deadline=None)
@given(st.text("~/.-_ aZ9é", min_size=1) | st.integers(200, 400).map(lambda n: "x" * n))
def test_any_name_is_a_source_or_one_line(name: str) -> None:
    try:
        answer = resolve(name).name
    except ModelError as error:
        answer = str(error)
    assert name in answer or "is a folder without" in answer
