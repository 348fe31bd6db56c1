"""An adapter merged into its base model: a folder like any base model's, for tools without LoRA."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from green_tune import parcel
from green_tune.errors import ModelError
from green_tune.predictor import BaseMissing, Predictor, quiet


def merge(adapter: Path, to: Path) -> None:
    """Writes the whole model and its tokenizer, in the precision of the training.

    Merged on a CPU, where a model has room that does not fit on the GPU. What was trained on a base
    in 4 bits is merged into the base in 16, so it answers a little differently.

    Raises:
        AdapterError: the adapter is not to be trusted.
        ModelError: the base model is not there, merging made weights that are no numbers, or they
            cannot be written.
    """
    parcel.check_adapter(adapter)
    recipe = parcel.check_recipe(adapter)
    try:
        predictor = Predictor(adapter, device="cpu")
        merged = predictor.model.merge_and_unload(safe_merge=True)
    except (BaseMissing, ValueError) as error:
        raise ModelError(str(error)) from error
    if recipe["precision"] == "fp16":  # a CPU has computed in fp32
        merged = merged.half()
    _save(merged, predictor.tokenizer, to)


def _save(merged: Any, tokenizer: Any, to: Path) -> None:
    """Files that all may read; those of safetensors are their owner's alone.

    Raises:
        ModelError: they cannot be written, such as for want of room.
    """
    try:
        with quiet():
            merged.save_pretrained(to)
            tokenizer.save_pretrained(to)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise ModelError(f"the merged model cannot be written: {why}") from error
    for path in to.iterdir():
        path.chmod(0o644)
