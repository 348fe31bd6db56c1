"""The program as a user has it: copied to a folder of its own, where whole commands are given."""

import shutil
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = ("MLproject", "conda.yaml", "green_tune", "entrypoints")


def copy_to(folder: Path) -> None:
    """Copies all that `mlflow run` needs."""
    for part in PARTS:
        copy: Callable[..., object] = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
