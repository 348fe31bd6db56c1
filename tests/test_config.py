"""What a user may ask for: every option reads back equal, every bad value is one clear line."""

from dataclasses import Field, fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from green_tune.config import Options, SweepConfig, TrainConfig
from green_tune.errors import ConfigError

BOTH = (TrainConfig, SweepConfig)
SPECS = {spec.name: spec for kind in BOTH for spec in fields(kind)}
BOUNDED = [spec for spec in SPECS.values() if spec.metadata["low"] is not None]


def kind_of(name: str) -> type[Options]:
    return next(kind for kind in BOTH if name in {spec.name for spec in fields(kind)})


def refusal(name: str, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        kind_of(name).parse({name: text})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def values(spec: "Field[Any]") -> st.SearchStrategy[Any]:
    """Everything that one option accepts."""
    low, high, choices = (spec.metadata[key] for key in ("low", "high", "choices"))
    if choices:
        return st.sampled_from(choices)
    if spec.type is bool:
        return st.booleans()
    if spec.type is int:
        return st.integers(low, high)
    if spec.type is float:
        return st.floats(low, high)
    return st.text().map(str.strip).filter(bool)


def configs(kind: type[Options]) -> st.SearchStrategy[Options]:
    return st.builds(kind, **{spec.name: values(spec) for spec in fields(kind)})


@settings(deadline=None)
@given(st.one_of(*map(configs, BOTH)))
def test_params_read_back_equal(config: Options) -> None:
    assert type(config).parse(config.to_params()) == config


def test_what_is_not_asked_keeps_its_default() -> None:
    assert TrainConfig.parse({"epochs": "3"}) == TrainConfig(epochs=3)
    assert TrainConfig.parse({}) == TrainConfig()


def test_values_are_stored_as_they_are_typed() -> None:
    params = TrainConfig(learning_rate=2e-4, use_rslora=True, batch_size=8).to_params()
    assert (params["learning_rate"], params["use_rslora"], params["batch_size"]) == (
        "0.0002",
        "true",
        "8",
    )


@pytest.mark.parametrize("text", ["true", "True", " TRUE "])
def test_case_and_blanks_around_a_value_do_not_matter(text: str) -> None:
    assert TrainConfig.parse({"use_rslora": text, "model": " tiny "}) == TrainConfig(
        use_rslora=True
    )


@pytest.mark.parametrize(
    ("name", "text", "fix"),
    [
        ("batch_size", "8.5", "whole number"),
        ("batch_size", "1e", "whole number"),
        ("batch_size", "nan", "whole number"),
        ("batch_size", "eight", "whole number"),
        ("batch_size", "", "whole number"),
        ("learning_rate", "1e", "number"),
        ("learning_rate", "2e-4x", "number"),
        ("learning_rate", "", "number"),
        ("learning_rate", "nan", "finite number"),
        ("learning_rate", "inf", "finite number"),
        ("learning_rate", "-inf", "finite number"),
        ("learning_rate", "1e400", "finite number"),
        ("learning_rate", "0", "at least 1e-09"),
        ("learning_rate", "-0.0002", "at least 1e-09"),
        ("lora_dropout", "1", "at most 0.99"),
        ("batch_size", "0", "at least 1"),
        ("batch_size", "4097", "at most 4096"),
        ("seed", "-1", "at least 0"),
        ("trials", "0", "at least 1"),
        ("use_rslora", "yes", "true nor false"),
        ("lr_scheduler", "cosin", "cosine, linear, constant"),
        ("precision", "int8", "auto, fp32, bf16, fp16"),
        ("sampler", "cmaes", "green, gp, tpe, nsga2, random, grid"),
    ],
)
def test_a_bad_value_is_named_with_what_would_be_right(name: str, text: str, fix: str) -> None:
    line = refusal(name, text)
    assert line.startswith(f"{name}={text}")
    assert fix in line


def test_an_empty_text_is_refused_with_its_default() -> None:
    assert refusal("model", "  ") == "model is empty; leave it out for its default tiny"


def test_an_unknown_parameter_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"^unknown parameter learning_rat; known: .* learning_rate,"
    ):
        TrainConfig.parse({"learning_rat": "1"})


@pytest.mark.parametrize("spec", BOUNDED, ids=lambda spec: str(spec.name))
def test_the_bound_that_a_message_names_is_accepted(spec: "Field[Any]") -> None:
    low, high = spec.metadata["low"], spec.metadata["high"]
    assert low is not None
    for beyond in [low - 1] if high is None else [low - 1, high + 1]:
        bound = refusal(spec.name, str(beyond)).split()[-1]
        config = kind_of(spec.name).parse({spec.name: bound})
        assert getattr(config, spec.name) == (low if beyond < low else high)


def test_a_seed_that_numpy_cannot_take_is_refused() -> None:
    assert "seed=4294967296 is too large" in refusal("seed", str(2**32))
    assert TrainConfig.parse({"seed": str(2**32 - 1)}).seed == 2**32 - 1


@pytest.mark.parametrize("rate", [0.0, 11.0, float("nan"), float("inf")])
def test_a_value_from_python_is_checked_like_a_typed_one(rate: float) -> None:
    with pytest.raises(ConfigError, match=f"learning_rate={rate}"):
        TrainConfig(learning_rate=rate)
