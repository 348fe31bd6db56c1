"""What a version's folder holds once it is packed, and that plain MLflow finds its way in it."""

import json
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from mlflow.models import Model
from parcels import RECIPE, save_adapter, write_json

from green_tune import packing, parcel, predictor
from green_tune.errors import AdapterError

# MLflow's own, at the first import of its pyfunc in a process.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = save_adapter(tmp_path / "trained")
    write_json(folder / parcel.RECIPE, RECIPE)
    return folder


@pytest.fixture
def packed(adapter: Path, tmp_path: Path) -> tuple[Path, str]:
    """A version, and its seal."""
    to = tmp_path / "version"
    to.mkdir()
    return to, packing.pack(adapter, "# Grün\n", b"\x89PNG\r\n\x1a\n", to)


def test_a_version_has_all_its_files_and_passes_every_check(packed: tuple[Path, str]) -> None:
    folder, seal = packed
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert names == parcel.OF_VERSION
    parcel.check(folder, seal)
    assert parcel.same_code(folder)


def test_the_adapter_in_it_is_the_trained_one_byte_for_byte(
    adapter: Path, packed: tuple[Path, str]
) -> None:
    for name in packing.CARRIED:
        assert (packed[0] / parcel.ADAPTER / name).read_bytes() == (adapter / name).read_bytes()
    card = packed[0] / parcel.ADAPTER / parcel.CARD
    assert card.read_text(encoding="utf-8") == "# Grün\n"


def test_what_lies_beside_the_adapter_in_its_run_does_not_travel(
    adapter: Path, tmp_path: Path
) -> None:
    (adapter / parcel.CARD).write_text("of an earlier promotion")
    to = tmp_path / "version"
    to.mkdir()
    packing.pack(adapter, "new", b"", to)
    assert (to / parcel.ADAPTER / parcel.CARD).read_text() == "new"


@pytest.mark.parametrize("wrong", ["adapter_model.bin", "setup.py"])
def test_an_adapter_with_anything_else_in_its_folder_is_not_packed(
    adapter: Path, tmp_path: Path, wrong: str
) -> None:
    (adapter / wrong).write_bytes(b"cos\nsystem\n")
    to = tmp_path / "version"
    to.mkdir()
    with pytest.raises(AdapterError, match=wrong):
        packing.pack(adapter, "", b"", to)
    assert not list(to.iterdir())


def test_mlflow_is_told_of_our_loader_alone(packed: tuple[Path, str]) -> None:
    (flavor,) = Model.load(str(packed[0])).flavors.values()
    assert flavor["loader_module"] == Path(parcel.CODE).stem
    assert (packed[0] / flavor["code"] / f"{flavor['loader_module']}.py").is_file()
    assert (packed[0] / flavor["data"] / parcel.WEIGHTS).is_file()
    assert hasattr(predictor, "_load_pyfunc")


def test_all_three_environments_pin_what_is_installed_here(packed: tuple[Path, str]) -> None:
    pins = (packed[0] / parcel.REQUIREMENTS).read_text().split()
    assert {pin.partition("==")[0] for pin in pins} == set(packing.NEEDED)
    assert f"peft=={metadata.version('peft')}" in pins
    assert not [pin for pin in pins if "+" in pin]  # a build of torch that PyPI does not have
    conda = yaml.safe_load((packed[0] / parcel.CONDA).read_text())
    assert conda["dependencies"][-1] == {"pip": pins}
    environment = yaml.safe_load((packed[0] / parcel.VIRTUALENV).read_text())
    assert f"python={environment['python']}" in conda["dependencies"]


def test_the_same_adapter_packed_again_differs_in_mlflows_stamp_alone(
    adapter: Path, packed: tuple[Path, str], tmp_path: Path
) -> None:
    again = tmp_path / "again"
    again.mkdir()
    packing.pack(adapter, "# Grün\n", b"\x89PNG\r\n\x1a\n", again)
    first, second = (
        json.loads((folder / parcel.MANIFEST).read_text())["files"] for folder in (packed[0], again)
    )
    assert {name for name in first if first[name] != second[name]} <= {parcel.MLMODEL}
