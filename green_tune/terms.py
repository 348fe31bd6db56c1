"""What the files of a parcel may say, line by line: config, recipe, MLmodel, environment.

Each table is what green-tune itself writes, with bounds where a value may vary; whatever else a
file says is refused. It knows no folder: `parcel` says where the files are.
"""

import re
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from green_tune import scrutiny
from green_tune.scrutiny import (
    FLAG,
    Rule,
    is_list,
    is_text,
    is_whole,
    matching,
    number,
    one_of,
    or_null,
    refused,
    shown,
    text,
    whole,
)
from green_tune.weights import PATH


def _are_targets(value: Any) -> bool:
    named = is_list(
        value, 10_000, lambda name: isinstance(name, str) and bool(PATH.fullmatch(name))
    )
    return value == "all-linear" or (named and len(value) > 0)


MUST_SAY: Mapping[str, Rule] = {  # bounds are those of `config`
    "peft_type": one_of("LORA"),
    "task_type": one_of("CAUSAL_LM"),
    "base_model_name_or_path": text(4096),
    "r": whole(1, 4096),
    "lora_alpha": number(1e-6, 1e6),
    "target_modules": ("all-linear, or a list of layers' names", _are_targets),
}
MAY_SAY: Mapping[str, Rule] = {
    "lora_dropout": number(0, 1),
    "layers_to_transform": or_null(
        (
            "a list of numbers",
            lambda value: is_list(value, 10_000, lambda n: is_whole(n, 0, 10_000)),
        )
    ),
    "revision": or_null(text(100)),
    "peft_version": text(100),
    **dict.fromkeys(("use_rslora", "use_dora", "fan_in_fan_out", "inference_mode"), FLAG),
}
OFF: Mapping[str, Any] = {  # all else that peft 0.21.2 writes, as it is by default
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,  # names code to import
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "init_lora_weights": True,  # some others change the base model
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "loftq_config": {},
    "lora_bias": False,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",  # a module that peft imports where the line above is set
    "modules_to_save": None,  # whole layers of the base model, replaced
    "monteclora_config": None,
    "qalora_group_size": 16,
    "rank_pattern": {},
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_qalora": False,
    "velora_config": None,
}


def config(path: Path) -> dict[str, Any]:
    """An adapter_config.json, once it asks for plain LoRA or DoRA.

    Raises:
        AdapterError: it cannot be read, or asks for anything else.
    """
    said = scrutiny.read_json(path)
    scrutiny.check_keys(path, said, MUST_SAY)
    scrutiny.check_rules(path, said, {**MUST_SAY, **MAY_SAY}, OFF)
    return said


def _is_template(value: Any) -> bool:
    parts = is_list(value, 3, lambda part: part == "" or is_text(part, 10_000, "\n\t"))
    return parts and len(value) == 3  # noqa: PLR2004


HUB_ID = r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+"
RECIPE_RULES: Mapping[str, Rule] = {
    "format": ("1", lambda value: scrutiny.same(value, 1)),
    "task": text(100),
    "fields": (
        "one to ten names",
        lambda value: is_list(value, 10, lambda n: is_text(n, 100) and n.isidentifier()) and value,
    ),
    "template": ("three texts", _is_template),
    "quality": one_of("labels", "answers", "summaries"),
    "labels": ("at most 50 texts", lambda v: is_list(v, 50, lambda label: is_text(label, 200))),
    "max_new_tokens": whole(0, 100_000),
    "max_seq_len": whole(16, 1_000_000),
    "precision": one_of("fp32", "bf16", "fp16"),
    "base": ("an object", lambda value: isinstance(value, dict)),
}
BASE_RULES: Mapping[str, Rule] = {
    "name": text(500),
    "kind": one_of("built", "folder", "hub"),
    "place": text(4096),
    "revision": matching("a commit, or empty", "([0-9a-f]{40})?"),
    "digest": matching("a digest in hex, or empty", "((sha256:)?[0-9a-f]{8,128})?"),
}


def recipe(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe.json, once it is whole and has the base model of the adapter's config.

    Raises:
        AdapterError: it cannot be read, is of a newer format, or says what it may not.
    """
    said = scrutiny.read_json(path)
    if is_whole(said.get("format"), 2, 2**31):
        raise refused(path, "was made by a newer green-tune", "update green-tune")
    _check_exactly(path, said, RECIPE_RULES)
    _check_exactly(path, said["base"], BASE_RULES)
    _check_prompt(path, said)
    _check_base(path, said["base"], config)
    return said


def _check_exactly(path: Path, said: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    scrutiny.check_keys(path, said, rules)
    scrutiny.check_rules(path, said, rules, {})
    if more := sorted(said.keys() - rules.keys()):
        raise refused(path, f"has {shown(more[0])}, which is not known")


def _check_prompt(path: Path, recipe: Mapping[str, Any]) -> None:
    (head, body, tail), fields = recipe["template"], recipe["fields"]
    if body not in fields:
        raise refused(path, f"has {shown(body)} in its template, which is none of its fields")
    if not (_fills_plainly(head, fields) and _fills_plainly(tail, fields)):
        raise refused(path, "has more in the braces of its template than the names of its fields")
    if bool(recipe["labels"]) is not (recipe["quality"] == "labels"):
        raise refused(path, f"has labels {shown(recipe['labels'])} for {recipe['quality']}")


def _fills_plainly(template: str, fields: list[str]) -> bool:
    """Whether `str.format` reads fields and nothing more: `{text.__class__}` reaches further."""
    try:
        found = list(string.Formatter().parse(template))
    except ValueError:
        return False
    return all(
        name is None or (name in fields and not spec and not conversion)
        for _, name, spec, conversion in found
    )


def _check_base(path: Path, base: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Whether recipe and config name one base model, pinned by its commit or its digest."""
    on_hub, place = base["kind"] == "hub", base["place"]
    pinned = (bool(base["revision"]), bool(base["digest"])) == (on_hub, not on_hub)
    if not pinned or (on_hub and not re.fullmatch(HUB_ID, place)):
        wanted = "a hub id and its commit" if on_hub else "a folder and its digest"
        raise refused(path, f"has {shown(place)} for a base model, not {wanted}")
    names = (place,) if on_hub else (place, base["name"])
    if config.get("base_model_name_or_path") not in names:
        raise refused(path, f"has another base model, {shown(place)}, than the config")
    if (config.get("revision") or "") != base["revision"]:
        raise refused(path, f"has another revision of {shown(place)} than the config")


FLAVOR: Mapping[str, Any] = {
    "loader_module": "green_tune_predictor",
    "code": "code",
    "data": "adapter",
    "config": {"base": ""},  # another base model is for the user to name, not for the parcel
    "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
}
FLAVOR_RULES: Mapping[str, Rule] = {"python_version": text(100), "streamable": FLAG}
MODEL_RULES: Mapping[str, Rule] = {
    "flavors": (
        "python_function alone, as a mapping",
        lambda value: (
            isinstance(value, dict)
            and value.keys() == {"python_function"}
            and isinstance(value["python_function"], dict)
        ),
    ),
    "model_size_bytes": or_null(whole(0, 2**50)),
    "signature": (
        "a mapping of texts",
        lambda value: (
            isinstance(value, dict)
            and is_list([*value.values()], 10, lambda part: part is None or is_text(part, 10_000))
        ),
    ),
    **dict.fromkeys(("artifact_path", "model_id", "run_id"), or_null(text(4096))),
    **dict.fromkeys(("mlflow_version", "model_uuid", "utc_time_created"), or_null(text(100))),
}
NO_TYPE_HINTS = {"is_signature_from_type_hint": False, "type_hint_from_example": False}


def check_mlmodel(path: Path) -> None:
    """Whether MLflow would load by an MLmodel nothing but the version's own code and adapter.

    Raises:
        AdapterError: it cannot be read, or asks for anything else.
    """
    said = scrutiny.read_yaml(path)
    scrutiny.check_keys(path, said, ["flavors"])
    scrutiny.check_rules(path, said, MODEL_RULES, NO_TYPE_HINTS)
    flavor = said["flavors"]["python_function"]
    scrutiny.check_keys(path, flavor, FLAVOR)
    scrutiny.check_rules(path, flavor, FLAVOR_RULES, FLAVOR)


PACKAGES = (
    "python", "pip", "setuptools", "wheel", "mlflow", "mlflow-skinny", "torch", "transformers",
    "peft", "accelerate", "safetensors", "tokenizers", "huggingface-hub", "sentencepiece",
    "protobuf", "bitsandbytes", "numpy", "pandas", "pyyaml",
)  # fmt: skip
REQUIREMENT = re.compile(rf"({'|'.join(PACKAGES)})(\[[a-z,]+\])?((==|<=|>=|=)[0-9][0-9A-Za-z.+]*)?")


ENVIRONMENT_RULES: Mapping[str, Rule] = {
    "name": text(100),
    "python": text(100),
    "channels": ("conda-forge", lambda value: value == ["conda-forge"]),
    **dict.fromkeys(
        ("dependencies", "build_dependencies"),
        ("a list", lambda value: isinstance(value, list)),
    ),
}


def check_requirements(path: Path) -> None:
    """Whether a requirements.txt has known packages of the usual index, and nothing else.

    Raises:
        AdapterError: it has an address, an option or another package, which pip would obey.
    """
    lines = scrutiny.read_text(path, scrutiny.YAML_BYTES).splitlines()
    _check_packages(path, (line for line in lines if line))


def check_environment(path: Path) -> None:
    """The same for a conda.yaml or a python_env.yaml.

    Raises:
        AdapterError: it has anything else.
    """
    said = scrutiny.read_yaml(path)
    scrutiny.check_rules(path, said, ENVIRONMENT_RULES, {})
    for wanted in (*said.get("dependencies", ()), *said.get("build_dependencies", ())):
        if wanted == "-r requirements.txt":  # which is checked for itself
            continue
        nested = wanted.get("pip") if isinstance(wanted, dict) and len(wanted) == 1 else None
        _check_packages(path, nested if isinstance(nested, list) else [wanted])


def _check_packages(path: Path, wanted: Iterable[Any]) -> None:
    for one in wanted:
        if not (isinstance(one, str) and REQUIREMENT.fullmatch(one)):
            raise refused(path, f"asks for {shown(one)}, which is no package that an adapter needs")
