"""Composes the folder of a version: an adapter with its card and label, and what loads it.

The loader is `predictor`, copied as it is: MLflow finds it by the file MLmodel, in an environment
where green-tune is not installed. Nothing in the folder is pickled. A door to MLflow's models.
"""

import platform
import shutil
from importlib import metadata
from pathlib import Path

from mlflow import pyfunc
from mlflow.models import Model

from green_tune import parcel

NEEDED = ("mlflow", "torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "pandas")
CARRIED = (parcel.CONFIG, parcel.WEIGHTS, parcel.RECIPE)


def pack(adapter: Path, card: str, label: bytes, to: Path) -> str:
    """Writes the folder of a version into an empty one; gives its seal.

    Raises:
        AdapterError: the adapter is not to be trusted.
    """
    parcel.check_adapter(adapter)
    parcel.check_recipe(adapter)
    folder = to / parcel.ADAPTER
    folder.mkdir()
    for name in CARRIED:
        shutil.copyfile(adapter / name, folder / name)
    (folder / parcel.CARD).write_text(card, encoding="utf-8")
    (folder / parcel.LABEL).write_bytes(label)
    _add_loader(to)
    return parcel.seal(to)


def _add_loader(to: Path) -> None:
    """The loader, the environment that it needs, and the file by which MLflow finds both."""
    code = to / parcel.CODE
    code.parent.mkdir()
    shutil.copyfile(Path(__file__).with_name("predictor.py"), code)
    for name, text in _environment().items():
        (to / name).write_text(text)
    model = Model()
    pyfunc.add_to_model(
        model,
        loader_module=code.stem,
        data=parcel.ADAPTER,
        code=code.parent.name,
        conda_env="conda.yaml",
        python_env="python_env.yaml",
        model_config={"base": ""},
    )
    model.save(str(to / "MLmodel"))


def _environment() -> dict[str, str]:
    """The libraries with which it was trained, in the three forms that MLflow's managers read."""
    pins = [f"{name}=={metadata.version(name).partition('+')[0]}" for name in NEEDED]
    python = platform.python_version()
    listed = "".join(f"      - {pin}\n" for pin in pins)
    return {
        "requirements.txt": "\n".join(pins) + "\n",
        "python_env.yaml": f'python: "{python}"\nbuild_dependencies: [pip]\n'
        "dependencies: [-r requirements.txt]\n",
        "conda.yaml": "name: adapter\nchannels: [conda-forge]\ndependencies:\n"
        f"  - python={python}\n  - pip\n  - pip:\n{listed}",
    }
