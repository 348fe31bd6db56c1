import hashlib
import importlib
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import parcels
import pytest

from green_tune import parcel
from green_tune.errors import AdapterError

FILES = sorted(parcel.OF_VERSION)
PASSWD = "/etc/passwd"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parcels.make_version(tmp_path_factory.mktemp("made") / "version")


@pytest.fixture
def version(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "version"))


def _seal_anyway(folder: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    """A manifest that an attacker wrote who can also write the seal."""
    parcel.seal(folder)
    manifest = json.loads((folder / parcel.MANIFEST).read_text())
    changed = change(manifest)
    parcels.write_json(folder / parcel.MANIFEST, manifest if changed is None else changed)
    return hashlib.sha256((folder / parcel.MANIFEST).read_bytes()).hexdigest()


def _files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_sealed_version_passes_and_the_check_leaves_it_as_it_was(version: Path) -> None:
    seal = parcel.seal(version)
    before = _files_of(version.parent)
    parcel.check(version, seal)
    assert _files_of(version.parent) == before


def test_a_seal_is_the_same_each_time_and_speaks_for_every_file(version: Path) -> None:
    seal = parcel.seal(version)
    data = (version / parcel.MANIFEST).read_bytes()
    assert parcel.seal(version) == seal == hashlib.sha256(data).hexdigest()
    assert set(json.loads(data)["files"]) == parcel.OF_VERSION - {parcel.MANIFEST}


def test_what_mlflow_leaves_beside_a_download_is_passed_over(version: Path) -> None:
    (version / parcel.META).write_text("model_name: x\n")
    seal = parcel.seal(version)
    (version / parcel.META).write_text("model_name: y\n")
    parcel.check(version, seal)
    assert parcel.META not in (version / parcel.MANIFEST).read_text()


@pytest.mark.parametrize("name", FILES)
def test_a_single_flipped_bit_anywhere_is_found(version: Path, name: str) -> None:
    seal = parcel.seal(version)
    whole = (version / name).read_bytes()
    chance = random.Random(name)
    for _ in range(20):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (version / name).write_bytes(data)
        with pytest.raises(AdapterError, match="is not as it was sealed") as caught:
            parcel.check(version, seal)
        assert name in str(caught.value)


@pytest.mark.parametrize("name", sorted(parcel.OF_VERSION - {parcel.MANIFEST}))
@pytest.mark.parametrize("left", [0, 5])
def test_a_file_that_was_cut_off_is_to_be_downloaded_again(
    version: Path, name: str, left: int
) -> None:
    seal = parcel.seal(version)
    os.truncate(version / name, left)
    with pytest.raises(AdapterError, match=f"is incomplete, with {left} of .*: download it again"):
        parcel.check(version, seal)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_to_be_downloaded_again(version: Path, name: str) -> None:
    seal = parcel.seal(version)
    (version / name).unlink()
    with pytest.raises(AdapterError, match=f"is incomplete, it lacks {name}: download it again"):
        parcel.check(version, seal)
    if name != parcel.MANIFEST:
        with pytest.raises(AdapterError, match="is incomplete"):
            parcel.seal(version)


def test_a_folder_that_is_empty_or_not_there_is_incomplete(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match="is incomplete"):
        parcel.check(tmp_path / "empty", "")
    with pytest.raises(AdapterError, match="is not there"):
        parcel.check(tmp_path / "nowhere", "")


def _link(path: Path) -> None:
    path.symlink_to(PASSWD)


@pytest.mark.parametrize(
    ("name", "put"),
    [
        ("adapter/adapter_model.bin", Path.touch),
        ("adapter/extra.pkl", Path.touch),
        ("adapter/helper.py", Path.touch),
        ("code/torch.py", Path.touch),
        ("code/__pycache__", Path.mkdir),
        ("adapter/more", Path.mkdir),
        ("more", Path.mkdir),
        (".hidden", Path.touch),
        ("Manifest.json", Path.touch),
        ("adapter/link", _link),
        ("link", _link),
        ("pipe", os.mkfifo),
    ],
)
def test_nothing_may_lie_beside_what_was_sealed(
    version: Path, name: str, put: Callable[[Path], None]
) -> None:
    seal = parcel.seal(version)
    put(version / name)
    with pytest.raises(AdapterError):
        parcel.check(version, seal)
    with pytest.raises(AdapterError):
        parcel.seal(version)


@pytest.mark.parametrize("name", [*FILES, "adapter", "code"])
def test_a_link_to_the_very_same_content_is_refused(version: Path, name: str) -> None:
    seal = parcel.seal(version)
    moved = (version / name).rename(version.parent / "elsewhere")
    (version / name).symlink_to(moved)
    with pytest.raises(AdapterError, match="a link"):
        parcel.check(version, seal)


@pytest.mark.parametrize("name", [parcel.MANIFEST, parcel.MLMODEL, "adapter/README.md"])
def test_a_pipe_in_a_files_place_is_refused_and_not_waited_for(version: Path, name: str) -> None:
    seal = parcel.seal(version)
    (version / name).unlink()
    os.mkfifo(version / name)
    with pytest.raises(AdapterError, match="neither file nor folder"):
        parcel.check(version, seal)


def test_a_link_in_the_manifests_place_is_not_written_through(version: Path) -> None:
    target = version.parent / "precious"
    target.write_text("as it was")
    (version / parcel.MANIFEST).symlink_to(target)
    with pytest.raises(AdapterError, match="a link"):
        parcel.seal(version)
    assert target.read_text() == "as it was"


def _listing(name: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = {"sha256": "0" * 64, "bytes": 1}

    return change


@pytest.mark.parametrize(
    "change",
    [
        _listing("../outside"),
        _listing(PASSWD),
        _listing("adapter\\..\\..\\outside"),
        _listing(parcel.MANIFEST),
        _listing("adapter/adapter_config.json"),
        lambda manifest: manifest["files"].pop("adapter/README.md") and None,
        lambda manifest: manifest["files"].update({parcel.MLMODEL: None}),
        lambda manifest: manifest["files"].update({parcel.MLMODEL: []}),
        lambda manifest: manifest["files"][parcel.MLMODEL].update(mode=1),
        lambda manifest: manifest["files"][parcel.MLMODEL].update(bytes=True),
        lambda manifest: manifest.update(format=True),
        lambda manifest: manifest.update(format=2),
        lambda manifest: manifest.update(files=[]),
        lambda manifest: manifest.update(more=1),
        lambda manifest: [manifest],
    ],
)
def test_a_manifest_is_refused_though_its_own_seal_is_right(
    version: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    seal = _seal_anyway(version, change)
    with pytest.raises(AdapterError):
        parcel.check_sealed(version, seal)


def test_a_manifest_that_is_too_large_or_not_json_is_refused(version: Path) -> None:
    for data in (b" " * (2**20 + 1), b"\xff", b"[" * 10**6, b'{"format": 1, "format": 1}'):
        parcel.seal(version)
        (version / parcel.MANIFEST).write_bytes(data)
        with pytest.raises(AdapterError):
            parcel.check_sealed(version, hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../adapter_config.json", "leads out of the folder"),
        ("adapter/../../x", "leads out of the folder"),
        ("/etc/passwd", "leads out of the folder"),
        ("..\\x", "leads out of the folder"),
        ("C:\\x", "leads out of the folder"),
        ("", "no part of an adapter"),
        ("./adapter_config.json", "no part of an adapter"),
        ("adapter//adapter_config.json", "no part of an adapter"),
        ("adapter/", "no part of an adapter"),
        ("ADAPTER_CONFIG.json", "no part of an adapter"),
        ("adapter_config.json\0", "no part of an adapter"),
        ("adapter_config.json\n", "no part of an adapter"),
        ("adapter_config.json ", "no part of an adapter"),
        ("аdapter_config.json", "no part of an adapter"),  # a Cyrillic a
        ("\u202enosj.gifnoc_retpada", "no part of an adapter"),
        ("x" * 10_000, "no part of an adapter"),
        ("adapter_model.bin", "a pickle can run code when it is read"),
        ("optimizer.PT", "a pickle can run code when it is read"),
        ("x.pkl", "a pickle can run code when it is read"),
        ("x.pickle", "a pickle can run code when it is read"),
        ("x.joblib", "a pickle can run code when it is read"),
        ("adapter_model.py", "is code"),
        ("code/other.py", "is code"),
    ],
)
@pytest.mark.parametrize("version", [True, False])
def test_a_strange_name_is_refused_and_shown_safely(name: str, words: str, version: bool) -> None:
    names = sorted(parcel.OF_VERSION if version else parcel.OF_ADAPTER)
    parcel.check_names(names, version=version)
    with pytest.raises(AdapterError, match=words) as caught:
        parcel.check_names([*names, name], version=version)
    line = str(caught.value)
    assert len(line) < 250
    assert line.isascii()
    assert line.isprintable()


def test_names_are_there_once_and_those_needed_are_there() -> None:
    for version, names in ((True, parcel.OF_VERSION), (False, {parcel.CONFIG, parcel.WEIGHTS})):
        parcel.check_names(names, version=version)
        for name in names:
            with pytest.raises(AdapterError, match="is there twice"):
                parcel.check_names([*names, name], version=version)
            with pytest.raises(AdapterError, match=f"it lacks {name}"):
                parcel.check_names(names - {name}, version=version)
    with pytest.raises(AdapterError, match="no part of an adapter"):
        parcel.check_names([*parcel.OF_ADAPTER, parcel.META], version=False)


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "lm_head"], "use_rslora": True},
        {"target_modules": ["embed_tokens", "v_proj"]},
        {"use_dora": True},
        {"target_modules": ["embed_tokens", "down_proj"], "use_dora": True},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
        {"r": 1, "lora_dropout": 0.1},
        {"shape": parcels.GPT2},
        {"shape": parcels.GPT2, "target_modules": ["c_attn", "wte"], "use_dora": True},
    ],
    ids=str,
)
def test_what_peft_saves_passes(tmp_path: Path, lora: dict[str, Any]) -> None:
    folder = parcels.save_adapter(tmp_path / "adapter", **lora)
    assert parcel.check_adapter(folder) == json.loads((folder / parcel.CONFIG).read_text())


def test_whole_layers_of_the_base_model_are_refused_where_peft_would_put_them_in(
    tmp_path: Path,
) -> None:
    folder = parcels.save_adapter(tmp_path / "adapter", modules_to_save=["lm_head"])
    with pytest.raises(AdapterError, match="modules_to_save"):
        parcel.check_adapter(folder)


def test_a_recipe_is_checked_beside_the_adapters_config(version: Path) -> None:
    assert parcel.check_recipe(version / parcel.ADAPTER) == parcels.RECIPE
    parcels.write_json(version / parcel.ADAPTER / parcel.RECIPE, parcels.RECIPE | {"format": 2})
    with pytest.raises(AdapterError, match="newer green-tune"):
        parcel.check(version, parcel.seal(version))


@pytest.mark.parametrize("name", [parcel.REQUIREMENTS, parcel.CONDA, parcel.VIRTUALENV])
def test_an_environment_file_that_asks_for_more_is_refused_though_sealed(
    version: Path, name: str
) -> None:
    text = (version / name).read_text()
    (version / name).write_text(text.replace("pip==", "evil==").replace("mlflow==", "evil=="))
    with pytest.raises(AdapterError, match="'evil"):
        parcel.check(version, parcel.seal(version))


DAMAGED = sorted(
    {*FILES} - {parcel.MANIFEST, parcel.CODE, "adapter/README.md", "adapter/label.png"}
)


@pytest.mark.parametrize("name", DAMAGED)
def test_whatever_is_damaged_and_sealed_anew_comes_to_one_line_or_is_harmless(
    version: Path, name: str
) -> None:
    chance = random.Random(name)
    whole = (version / name).read_bytes()
    refused = []
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 2, 10))):
            place = chance.randrange(min(len(data), 3000))
            data[place : place + chance.choice((0, 1, 4))] = chance.randbytes(chance.choice((0, 1)))
        (version / name).write_bytes(data)
        try:
            parcel.check(version, parcel.seal(version))
        except AdapterError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert all(line.isprintable() and len(line) < 500 for line in refused)


def test_the_code_is_our_own_only_byte_for_byte(
    version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = version.parent / "predictor.py"
    monkeypatch.setattr(parcel, "__file__", str(version.parent / "parcel.py"))
    for text, same in (
        ("a = 1\n", True),
        ("a = 1\n ", False),
        ("a = 1", False),
        ("a = 2\n", False),
    ):
        ours.write_text("a = 1\n")
        (version / parcel.CODE).write_text(text)
        assert parcel.same_code(version) is same


def test_the_parcel_as_mlflow_writes_it_passes(version: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyfunc warns of its own type hints when it is imported
        pyfunc = importlib.import_module("mlflow.pyfunc")
        from mlflow.models import Model

    target = tmp_path / "written"
    shutil.copytree(version, target)
    for name in (parcel.MLMODEL, parcel.REQUIREMENTS, parcel.CONDA, parcel.VIRTUALENV):
        (target / name).unlink()
    pins = ["mlflow==3.17.2", "torch==2.13.0", "peft==0.21.2", "transformers==5.23.0"]
    pyfunc.save_model(
        str(tmp_path / "by_mlflow"),
        loader_module="green_tune_predictor",
        code_paths=[str(version / parcel.CODE)],
        data_path=str(version / parcel.ADAPTER),
        model_config={"base": ""},
        pip_requirements=pins,
    )
    for name in (parcel.REQUIREMENTS, parcel.CONDA, parcel.VIRTUALENV):
        shutil.copy(tmp_path / "by_mlflow" / name, target / name)
    model = Model.load(str(tmp_path / "by_mlflow"))
    model.flavors["python_function"]["data"] = parcel.ADAPTER  # MLflow would put it into data/
    model.save(str(target / parcel.MLMODEL))
    parcel.check(target, parcel.seal(target))
