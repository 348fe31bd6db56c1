"""An adapter merged into its base model: a folder like any base model's, for tools without LoRA."""

from pathlib import Path

from green_tune import parcel
from green_tune.errors import ModelError
from green_tune.predictor import BaseMissing, Predictor


def merge(adapter: Path, to: Path) -> None:
    """Writes the whole model and its tokenizer, in the precision of the training.

    Merged on a CPU, where a model has room that does not fit on the GPU. What was trained on a base
    in 4 bits is merged into the base in 16, so it answers a little differently.

    Raises:
        AdapterError: the adapter is not to be trusted.
        ModelError: the base model is not there, or merging made weights that are no numbers.
    """
    parcel.check_adapter(adapter)
    parcel.check_recipe(adapter)
    try:
        predictor = Predictor(adapter, device="cpu")
        merged = predictor.model.merge_and_unload(safe_merge=True)
    except (BaseMissing, ValueError) as error:
        raise ModelError(str(error)) from error
    merged.save_pretrained(to)
    predictor.tokenizer.save_pretrained(to)
