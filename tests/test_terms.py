import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import parcels
import pytest
import yaml

from green_tune import parcel, tasks, terms
from green_tune.errors import AdapterError
from green_tune.terms import MAY_SAY, MUST_SAY, OFF

HUB = {"name": "gemma-2b", "kind": "hub", "place": "google/gemma-2b", "revision": "0" * 40,
       "digest": ""}  # fmt: skip


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parcels.make_version(tmp_path_factory.mktemp("made") / "version")


@pytest.fixture
def adapter(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "adapter", tmp_path / "adapter"))


def _config(adapter: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((adapter / parcel.CONFIG).read_text())
    return content


def test_the_table_is_what_peft_writes_and_its_defaults() -> None:
    import peft

    config: Any = peft.LoraConfig()
    written = config.to_dict()
    assert set(written) == {*MUST_SAY, *MAY_SAY, *OFF}
    assert {key: written[key] for key in OFF} == OFF


@pytest.mark.parametrize("key", OFF)
@pytest.mark.parametrize("value", [1, True, False, "x", [1], {"a": 1}, 0.5, ""], ids=repr)
def test_what_is_off_by_default_stays_off(adapter: Path, key: str, value: Any) -> None:
    if value == OFF[key] and type(value) is type(OFF[key]):
        value = "other"
    parcels.write_json(adapter / parcel.CONFIG, _config(adapter) | {key: value})
    with pytest.raises(AdapterError, match=f"has '{key}': "):
        parcel.check_adapter(adapter)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_mapping", {"base_model_class": "Evil", "parent_library": "os"}),
        ("megatron_core", "megatron.evil"),
        ("init_lora_weights", "pissa"),
        ("rank_pattern", {"q_proj": 4}),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("peft_type", "ADALORA"),
        ("peft_type", None),
        ("task_type", "SEQ_CLS"),
        ("r", 0),
        ("r", True),
        ("r", 2.0),
        ("r", "2"),
        ("r", 4097),
        ("lora_alpha", 0),
        ("lora_alpha", -16),
        ("lora_alpha", 1e9),
        ("lora_alpha", None),
        ("lora_dropout", 1.5),
        ("lora_dropout", "0"),
        ("use_dora", 0),
        ("use_rslora", None),
        ("target_modules", ".*"),
        ("target_modules", "(a+)+$"),
        ("target_modules", []),
        ("target_modules", [".*"]),
        ("target_modules", ["q_proj|lm_head"]),
        ("target_modules", ["q_proj\n"]),
        ("target_modules", [1]),
        ("target_modules", None),
        ("layers_to_transform", 1),
        ("layers_to_transform", ["1"]),
        ("layers_to_transform", [-1]),
        ("base_model_name_or_path", None),
        ("base_model_name_or_path", ""),
        ("base_model_name_or_path", "a\nb"),
        ("base_model_name_or_path", "gnp.\u202eexe"),
        ("revision", "\x1b[2J"),
        ("revision", 1),
        ("peft_version", "x" * 101),
        ("surprise", 1),
        ("surprise\n", "x"),
        ("runtime_config", {"ephemeral_gpu_offload": True}),
    ],
    ids=repr,
)
def test_a_config_that_asks_for_more_is_refused(adapter: Path, key: str, value: Any) -> None:
    parcels.write_json(adapter / parcel.CONFIG, _config(adapter) | {key: value})
    with pytest.raises(AdapterError) as caught:
        parcel.check_adapter(adapter)
    line = str(caught.value)
    assert parcel.CONFIG in line
    assert key.strip() in line
    assert line.isprintable()


def test_unknown_keys_pass_where_they_say_nothing_and_defaults_may_be_left_out(
    adapter: Path,
) -> None:
    config = _config(adapter) | {"of_a_newer_peft": None}
    for key in (*MAY_SAY, *OFF):
        del config[key]
    parcels.write_json(adapter / parcel.CONFIG, config)
    assert parcel.check_adapter(adapter) == config
    for key in MUST_SAY:
        parcels.write_json(adapter / parcel.CONFIG, {k: config[k] for k in config if k != key})
        with pytest.raises(AdapterError, match=f"lacks {key}"):
            parcel.check_adapter(adapter)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"r": 2', '"r": 2, "r": 2', "a key is there twice"),
        ('"loftq_config": {}', '"loftq_config": {"a": 1, "a": 1}', "a key is there twice"),
        ('"lora_alpha": 8', '"lora_alpha": NaN', "no number of JSON"),
        ('"lora_alpha": 8', '"lora_alpha": Infinity', "no number of JSON"),
        ('"lora_alpha": 8', '"lora_alpha": 1e999', "too large"),
        ('"lora_alpha": 8', '"lora_alpha": ' + "1" * 5000, "cannot be read as JSON"),
        ('"r": 2', '"r": ' + "[" * 100_000 + "]" * 100_000, "nested too deep"),
        ('"loftq_config": {}', '"loftq_config": ' + "[" * 400 + "]" * 400, "has 'loftq_config'"),
        ('"r": 2', '"r": 2' + " " * 10_000_000, "over 1048576 bytes"),
        ('"r": 2', "", "cannot be read as JSON"),
    ],
    ids=lambda text: text[:30],
)
def test_a_config_that_readers_may_read_apart_is_refused(
    adapter: Path, old: str, new: str, words: str
) -> None:
    text = (adapter / parcel.CONFIG).read_text()
    assert old in text
    (adapter / parcel.CONFIG).write_text(text.replace(old, new))
    with pytest.raises(AdapterError, match=words) as caught:
        parcel.check_adapter(adapter)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff\xfe{\0}\0", b"\xef\xbb\xbf{}"])
def test_a_config_that_is_no_object_in_utf8_is_refused(adapter: Path, data: bytes) -> None:
    (adapter / parcel.CONFIG).write_bytes(data)
    with pytest.raises(AdapterError):
        parcel.check_adapter(adapter)


def test_a_flipped_byte_leaves_a_config_that_was_asked_for_or_none(adapter: Path) -> None:
    """Without a seal, a number may change to another that is allowed; nothing else may."""
    chance = random.Random(0)
    whole = (adapter / parcel.CONFIG).read_bytes()
    config = _config(adapter)
    passed = 0
    for _ in range(300):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (adapter / parcel.CONFIG).write_bytes(data)
        try:
            read = parcel.check_adapter(adapter)
        except AdapterError:
            continue
        passed += 1
        free = {"lora_alpha", "lora_dropout", "base_model_name_or_path", "peft_version"}
        changed = {key for key in config if read.get(key, OFF.get(key)) != config[key]}
        assert changed <= free
        assert set(read) <= set(config) or all(read[key] is None for key in set(read) - set(config))
    assert 0 < passed < 150


@pytest.mark.parametrize("task", tasks.TASKS.values(), ids=lambda task: task.name)
def test_the_recipes_of_all_tasks_pass(adapter: Path, task: tasks.Task) -> None:
    recipe = parcels.RECIPE | {
        "task": task.name,
        "fields": [*task.fields[:-1]],
        "template": [*task.template],
        "quality": task.quality,
        "labels": ["negative", "positive"] if task.quality == "labels" else [],
        "max_new_tokens": task.max_new_tokens,
    }
    parcels.write_json(adapter / parcel.RECIPE, recipe)
    assert parcel.check_recipe(adapter) == recipe


@pytest.mark.parametrize(
    "change",
    [
        {"format": True},
        {"format": 0},
        {"format": "1"},
        {"task": ""},
        {"task": "a\tb"},
        {"fields": []},
        {"fields": ["context", "question", "a-b"]},
        {"fields": "context"},
        {"fields": [f"f{number}" for number in range(11)]},
        {"template": ["", "context"]},
        {"template": ["", "answer", ""]},
        {"template": ["", ["context"], ""]},
        {"template": ["\0", "context", ""]},
        {"template": ["x" * 10_001, "context", ""]},
        {"template": ["{question.__class__.__init__.__globals__}", "context", ""]},
        {"template": ["{question[0]}", "context", ""]},
        {"template": ["{question!r}", "context", ""]},
        {"template": ["{question:>1000000000}", "context", ""]},
        {"template": ["", "context", "{answer}"]},
        {"template": ["", "context", "{}"]},
        {"template": ["", "context", "{question"]},
        {"template": ["", "context", "}"]},
        {"quality": "perplexity"},
        {"quality": None},
        {"quality": "labels"},
        {"labels": ["yes"]},
        {"labels": [str(number) for number in range(51)], "quality": "labels"},
        {"labels": [""], "quality": "labels"},
        {"labels": ["\x1b[31m"], "quality": "labels"},
        {"max_new_tokens": -1},
        {"max_new_tokens": 10**9},
        {"max_seq_len": 15},
        {"max_seq_len": 1_000_001},
        {"precision": "int8"},
        {"base": None},
        {"base": []},
        {"surprise": 1},
        {"surprise": None},
    ],
    ids=str,
)
def test_a_recipe_that_says_something_else_is_refused(
    adapter: Path, change: dict[str, Any]
) -> None:
    parcels.write_json(adapter / parcel.RECIPE, parcels.RECIPE | change)
    with pytest.raises(AdapterError, match=parcel.RECIPE) as caught:
        parcel.check_recipe(adapter)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", [*parcels.RECIPE, *parcels.RECIPE["base"]])
def test_a_recipe_says_all(adapter: Path, key: str) -> None:
    recipe = copy.deepcopy(parcels.RECIPE)
    del (recipe if key in recipe else recipe["base"])[key]
    parcels.write_json(adapter / parcel.RECIPE, recipe)
    with pytest.raises(AdapterError, match=f"lacks {key}"):
        parcel.check_recipe(adapter)


@pytest.mark.parametrize(
    ("base", "config", "words"),
    [
        ({}, {}, None),
        ({}, {"base_model_name_or_path": "small"}, None),
        ({}, {"base_model_name_or_path": "large"}, "another base model"),
        ({}, {"revision": "main"}, "another revision"),
        ({"digest": ""}, {}, "a folder and its digest"),
        ({"digest": "../x"}, {}, "digest in hex"),
        ({"revision": "0" * 40}, {}, "a folder and its digest"),
        ({"kind": "remote"}, {}, "built or folder or hub"),
        (HUB, {"base_model_name_or_path": "google/gemma-2b", "revision": "0" * 40}, None),
        (HUB, {"base_model_name_or_path": "google/gemma-2b"}, "another revision"),
        (HUB, {"base_model_name_or_path": "gemma-2b", "revision": "0" * 40}, "another base model"),
        (HUB | {"revision": ""}, {}, "a hub id and its commit"),
        (HUB | {"revision": "main"}, {}, "a commit, or empty"),
        (HUB | {"place": "/models/small"}, {}, "a hub id and its commit"),
        (HUB | {"place": "google/.."}, {}, "a hub id and its commit"),
        (HUB | {"digest": "0" * 64}, {}, "a hub id and its commit"),
    ],
)
def test_recipe_and_config_name_one_base_that_is_pinned(
    adapter: Path, base: dict[str, Any], config: dict[str, Any], words: str | None
) -> None:
    recipe = parcels.RECIPE | {"base": parcels.RECIPE["base"] | base}
    parcels.write_json(adapter / parcel.RECIPE, recipe)
    parcels.write_json(adapter / parcel.CONFIG, _config(adapter) | config)
    if words is None:
        assert parcel.check_recipe(adapter) == recipe
    else:
        with pytest.raises(AdapterError, match=words):
            parcel.check_recipe(adapter)


def _flavor(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda model: model["flavors"]["python_function"].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        _flavor(loader_module="os"),
        _flavor(loader_module="mlflow.sklearn"),
        _flavor(code=None),
        _flavor(code="../code"),
        _flavor(data="."),
        _flavor(data="/tmp"),
        _flavor(config={"base": "/elsewhere"}),
        _flavor(config={"base": "", "more": 1}),
        _flavor(config="config.yaml"),
        _flavor(env="conda.yaml"),
        _flavor(env={"conda": "../conda.yaml", "virtualenv": "python_env.yaml"}),
        _flavor(python_model="python_model.pkl"),
        _flavor(model_code_path="model.py"),
        _flavor(artifacts={"x": {"path": "x", "uri": "file:///etc/passwd"}}),
        _flavor(cloudpickle_version="3.1.0"),
        _flavor(streamable="yes"),
        lambda model: model["flavors"]["python_function"].pop("loader_module"),
        lambda model: model["flavors"].update(sklearn={"pickled_model": "model.pkl"}),
        lambda model: model["flavors"].update(python_function=None),
        lambda model: model.update(flavors=[]),
        lambda model: model.pop("flavors"),
        lambda model: model.update(env_vars=["AWS_SECRET_ACCESS_KEY"]),
        lambda model: model.update(saved_input_example_info={"artifact_path": "../x"}),
        lambda model: model.update(is_signature_from_type_hint=True),
        lambda model: model.update(run_id=1),
        lambda model: model.update({1: 2}),
    ],
)
def test_an_mlmodel_that_loads_something_else_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    model = copy.deepcopy(parcels.MLMODEL)
    path = tmp_path / "MLmodel"
    path.write_text(yaml.safe_dump(model))
    terms.check_mlmodel(path)
    change(model)
    path.write_text(yaml.safe_dump(model))
    with pytest.raises(AdapterError, match="MLmodel"):
        terms.check_mlmodel(path)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch executed']",
        "flavors: !!python/name:os.system ''",
        "a: !!bool x",
        "a: !!int ''",
        "? {a: b}\n: c",
        "a: 2001-99-99",
        "a: 0x" + "f" * 10_000,
        "[" * 10_000,
        "- a",
        "",
        "a: &a [x]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\nd: [*c,*c,*c,*c]",
        "flavors: {}" + " " * 2**16,
        "a: \0",
    ],
    ids=lambda text: text[:20],
)
def test_yaml_that_is_no_plain_mapping_is_refused_and_nothing_is_executed(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "MLmodel"
    path.write_text(text)
    for check in (terms.check_mlmodel, terms.check_environment):
        with pytest.raises(AdapterError):
            check(path)
    assert [file.name for file in tmp_path.iterdir()] == ["MLmodel"]


def test_packages_are_known_ones_by_name_and_version(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("mlflow==3.17.2\n\ntorch==2.13.0+cpu\npandas<=2.9\nhuggingface-hub==2.4.0\n")
    terms.check_requirements(path)
    for line in (
        "--index-url https://example.org/simple",
        "-r other.txt",
        "-r requirements.txt",
        "-e .",
        "torch @ https://example.org/torch.whl",
        "git+https://example.org/torch",
        "./torch.whl",
        "torch==2.13.0 --hash=sha256:0",
        "torch==2.13.0; python_version > '3'",
        "torchh==2.13.0",
        "torch==2.13.0\x0b-e .",
        "${TORCH}",
    ):
        path.write_text(f"mlflow==3.17.2\n{line}\n")
        with pytest.raises(AdapterError, match="asks for"):
            terms.check_requirements(path)


@pytest.mark.parametrize(
    "change",
    [
        {"channels": ["https://example.org"]},
        {"channels": ["conda-forge", "evil"]},
        {"dependencies": "python"},
        {"dependencies": ["python=3.11", {"pip": "evil"}]},
        {"dependencies": ["python=3.11", {"pip": ["evil==1"]}]},
        {"dependencies": ["python=3.11", {"pip": [["torch"]]}]},
        {"dependencies": [{"pip": [], "post": []}]},
        {"dependencies": ["conda-forge::evil"]},
        {"variables": {"LD_PRELOAD": "x.so"}},
        {"prefix": "/"},
    ],
    ids=str,
)
def test_an_environment_with_anything_else_in_it_is_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "conda.yaml"
    path.write_text(yaml.safe_dump(parcels.CONDA))
    terms.check_environment(path)
    path.write_text(yaml.safe_dump(parcels.CONDA | change))
    with pytest.raises(AdapterError, match=r"conda\.yaml"):
        terms.check_environment(path)
