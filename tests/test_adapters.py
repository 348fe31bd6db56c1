"""Adapters by what a user calls them, and brought here whole or not at all."""

import errno
import math
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trained
from mlflow import MlflowClient

from green_tune import adapters, parcel
from green_tune.errors import AdapterError, Stopped, StoreError
from green_tune.registry import Registry
from green_tune.results import KIND
from green_tune.versions import ADAPTER_KIND, Version

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")
NAME = "tiny-sentiment"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The registry of a store whose sweep is promoted."""
    uri = trained.copied(tmp_path, promoted=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return Registry(uri)


def runs() -> dict[str, str]:
    return trained.trials(f"sqlite:///{Path('mlflow.db').resolve()}")


def refusal(ask: Callable[[], object], error: type[Exception] = AdapterError) -> str:
    with pytest.raises(error) as caught:
        ask()
    text = str(caught.value)
    assert text.isprintable()
    return text


def made(loss: float, kg: float, number: int = 1, **tags: str) -> Version:
    own = {KIND: ADAPTER_KIND, "val_loss": repr(loss), "emissions_kg": repr(kg), "task": "qa",
           "base_model": "gemma-2b", "val_bits_per_byte": repr(loss)}  # fmt: skip
    return Version(name="m", number=number, run_id="r", source="s", tags=own | tags)


def wish(versions: list[Version], task: str = "", base: str = "", max_g: float = 0.0) -> int:
    return adapters.wished(versions, task=task, base=base, max_g=max_g).number


def test_an_adapter_is_found_by_its_run_or_by_the_address_in_it(registry: Registry) -> None:
    run_id = runs()["0"]
    named = adapters.find(run_id, registry)
    assert named.run_address == f"runs:/{run_id}/adapter"
    assert named.run_id == run_id
    for path in ("adapter", "checkpoints/step-5"):
        text = f"runs:/{run_id}/{path}"
        assert adapters.find(text, registry).run_address == text


def test_an_adapter_is_found_by_its_registered_name(registry: Registry) -> None:
    best = registry.version(NAME, "best")
    for text in (NAME, f"{NAME}@best", f"{NAME}/{best.number}"):
        for before in ("", "models:/"):
            assert adapters.find(before + text, registry).version == best
    latest = registry.versions(NAME)[-1]
    assert adapters.find(f"{NAME}@latest", registry).version == latest
    assert adapters.find(f"{NAME}@best", registry).run_id == best.run_id


def test_a_name_alone_is_its_latest_version_where_none_is_the_best(registry: Registry) -> None:
    client = MlflowClient(f"sqlite:///{Path('mlflow.db').resolve()}")
    client.delete_registered_model_alias(NAME, "best")
    assert adapters.find(NAME, registry).version == registry.versions(NAME)[-1]


def test_an_adapter_is_found_in_a_folder_or_in_one_that_was_pulled(registry: Registry) -> None:
    version = registry.version(NAME, "best")
    folder = Path("pulled")
    folder.mkdir()
    adapters.fetch_version(version, registry, folder)
    for text in ("pulled", "./pulled", "pulled/adapter", str(folder.resolve())):
        named = adapters.find(text, registry)
        assert named.folder == (folder / "adapter").resolve()
        assert (named.run_id, named.run_address) == ("", "")
        assert adapters.bring(named, registry, Path("unused")) == named.folder
    assert not Path("unused").exists()


def test_a_folder_of_a_registered_name_does_not_hide_what_is_asked_of_the_registry(
    registry: Registry,
) -> None:
    folder = Path(NAME) / "adapter"
    folder.mkdir(parents=True)
    (folder / parcel.CONFIG).write_text("{}")
    assert adapters.find(NAME, registry).folder == folder.resolve()
    assert adapters.find(f"models:/{NAME}", registry).version == registry.version(NAME, "best")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "@",
        "/",
        "@best",
        f"{NAME}@",
        f"{NAME}/",
        f"{NAME}/x",
        f"{NAME}/0",
        f"{NAME}/01",
        f"{NAME}/-1",
        f"{NAME}/1/2",
        f"{NAME}@best@greenest",
        f"{NAME}@best/1",
        f"{NAME}@BEST",
        f" {NAME}",
        "it's",
        'a"b',
        "a\nb",
        "\x1b[31mred",
        "\x00",
        "x" * 5000,
        "x/" * 3000,
        "%41%2f..",
        "..",
        "../x",
        "./x",
        ".",
        "~",
        "~nobody-of-this-name",
        "/proc",
        "runs:/x",
        "runs:/" + "a" * 32 + "/../x",
        "runs:/" + "a" * 32 + "/adapter/../../x",
        "runs:/" + "a" * 32 + "/checkpoints/step-x",
        "models:/",
        "models:/@best",
        "models:/" + "a" * 32,
        "A" * 32,
        "a" * 31,
        "DROP TABLE runs; --",
    ],
)
def test_nonsense_is_one_short_line(registry: Registry, text: str) -> None:
    assert 10 < len(refusal(lambda: adapters.find(text, registry))) < 1000


def test_an_adapter_on_the_way_is_brought_from_its_run(registry: Registry) -> None:
    run_id = runs()["0"]
    folder = Path("here")
    folder.mkdir()
    named = adapters.find(run_id, registry)
    assert adapters.bring(named, registry, folder) == folder
    assert {path.name for path in folder.iterdir()} >= {parcel.CONFIG, parcel.WEIGHTS}


def test_a_run_that_never_was_is_said_in_one_line(registry: Registry) -> None:
    named = adapters.find("a" * 32, registry)
    assert "a" * 32 in refusal(lambda: adapters.bring(named, registry, Path()), StoreError)


def test_an_adapter_is_still_there_when_its_run_was_deleted(registry: Registry) -> None:
    run_id = registry.version(NAME, "best").run_id
    MlflowClient(f"sqlite:///{Path('mlflow.db').resolve()}").delete_run(run_id)
    folder = Path("here")
    folder.mkdir()
    named = adapters.find(NAME, registry)
    assert adapters.bring(named, registry, folder) == folder / parcel.ADAPTER


def test_a_run_without_files_has_no_adapter(registry: Registry) -> None:
    run_id = MlflowClient(f"sqlite:///{Path('mlflow.db').resolve()}").create_run("0").info.run_id
    said = refusal(lambda: adapters.bring(adapters.find(run_id, registry), registry, Path()))
    assert said.startswith("there is no adapter at ")


def test_what_does_not_fit_on_the_disk_is_not_begun(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = registry.version(NAME, "best")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 1000, 1000))
    said = refusal(lambda: adapters.fetch_version(version, registry, Path()))
    assert said.startswith("the adapter needs 0.")
    assert "has 0.0 MiB free: make room" in said
    assert {path.name for path in Path().iterdir()} == {"mlflow.db"}


def test_a_file_that_is_too_large_for_any_adapter_is_not_downloaded(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = registry.version(NAME, "best")
    files = registry.files(registry.place(version))
    huge = files | {"adapter/adapter_model.safetensors": 2**45}
    monkeypatch.setattr(registry, "files", lambda _: huge)
    assert refusal(lambda: adapters.fetch_version(version, registry, Path())) == (
        "adapter/adapter_model.safetensors has 33,554,432 MiB: that is no adapter"
    )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_disk_that_fills_up_on_the_way_has_its_own_name(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, number: int, *, wrapped: bool
) -> None:
    error: Exception = OSError(number, "no more")
    if wrapped:
        cause, error = error, StoreError("the tracking store cannot be used")
        error.__cause__ = cause

    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(registry, "fetch", full)
    version = registry.version(NAME, "best")
    said = refusal(lambda: adapters.fetch_version(version, registry, Path()))
    assert said.startswith("no space left in ")


def test_another_error_of_a_download_keeps_its_own_name(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise StoreError("the tracking store cannot be used: away")

    monkeypatch.setattr(registry, "fetch", away)
    version = registry.version(NAME, "best")
    said = refusal(lambda: adapters.fetch_version(version, registry, Path()), StoreError)
    assert said == "the tracking store cannot be used: away"


@pytest.mark.parametrize("name", ["../x", "adapter/../../x", "adapter/adapter_model.bin", "/x"])
def test_a_store_that_lists_what_no_adapter_has_is_not_downloaded_from(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    version = registry.version(NAME, "best")
    files = registry.files(registry.place(version)) | {name: 10}
    monkeypatch.setattr(registry, "files", lambda _: files)
    refusal(lambda: adapters.fetch_version(version, registry, Path()))
    assert {path.name for path in Path().iterdir()} == {"mlflow.db"}


def test_a_folder_gets_its_name_when_it_is_whole() -> None:
    with adapters.whole(Path("a")) as scratch:
        (scratch / "file").write_text("whole")
        assert not Path("a").exists()
    assert Path("a/file").read_text() == "whole"
    assert Path("a").stat().st_mode & 0o777 == 0o755
    assert [path.name for path in Path().iterdir()] == ["a"]


@pytest.mark.parametrize("error", [RuntimeError("broken"), Stopped(15), KeyboardInterrupt()])
def test_what_did_not_get_whole_leaves_nothing(error: BaseException) -> None:
    with pytest.raises(type(error)), adapters.whole(Path("a")) as scratch:
        (scratch / "file").write_text("half")
        raise error
    assert list(Path().iterdir()) == []


def test_what_has_got_the_name_meanwhile_is_not_overwritten() -> None:
    def meanwhile() -> None:
        with adapters.whole(Path("a")) as scratch:
            (scratch / "file").write_text("mine")
            Path("a").mkdir()
            Path("a/file").write_text("theirs")

    assert refusal(meanwhile).startswith("a cannot be made: ")
    assert Path("a/file").read_text() == "theirs"
    assert [path.name for path in Path().iterdir()] == ["a"]


@pytest.mark.parametrize("place", ["none/a", "/proc/a"])
def test_where_no_folder_can_be_made_it_is_said(place: str) -> None:
    def make() -> None:
        with adapters.whole(Path(place)):
            pass

    assert refusal(make).startswith(f"{place} cannot be made: ")


def test_a_wish_gives_the_fewest_bits_per_byte_under_the_cap() -> None:
    versions = [made(1.0, 0.2, 1), made(1.2, 0.05, 2), made(1.1, 0.02, 3, task="sentiment")]
    assert wish(versions) == 1
    assert wish(versions, max_g=200.0) == 1
    assert wish(versions, max_g=199.0) == 3
    assert wish(versions, task="qa", max_g=199.0) == 2
    assert wish(versions, task="sentiment") == 3


def test_of_equals_a_wish_gives_the_cheapest_and_what_has_no_figure_comes_last() -> None:
    versions = [made(1.0, 0.2, 1), made(1.0, 0.1, 2), made(0.1, 0.1, 3, val_bits_per_byte="x")]
    assert wish(versions) == 2
    assert wish(versions[2:]) == 3
    assert math.isnan(versions[2].figure("val_bits_per_byte"))


def test_a_wish_that_nothing_meets_says_what_there_is() -> None:
    versions = [made(1.0, 0.2, 1), made(1.2, 0.05, 2, task="sentiment", base_model="tiny")]
    assert refusal(lambda: wish([])).startswith("no adapter is registered yet: ")
    assert refusal(lambda: wish([made(1.0, math.nan)])).startswith("no adapter is registered yet")
    assert refusal(lambda: wish(versions, task="qq")) == (
        "no adapter is registered for task=qq; there is qa, sentiment"
    )
    assert refusal(lambda: wish(versions, task="qa", base="tiny")) == (
        "no adapter is registered for base=tiny; there is gemma-2b"
    )
    assert refusal(lambda: wish(versions, max_g=1.0)) == (
        "none of 2 adapters took at most 1 g CO2e: the cheapest took 50 g"
    )
