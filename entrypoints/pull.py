"""`mlflow run . -e pull`: an adapter from the registry, by name or by wish, whole and checked."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from entrypoints.options import options_of, run
from green_tune.config import Options, option
from green_tune.errors import AdapterError, ConfigError

if TYPE_CHECKING:
    from green_tune.registry import Registry
    from green_tune.versions import Version

log = logging.getLogger(__name__)

AUTO, ALL = "auto", "all"
FOLDER = Path("adapters")
EXAMPLES = {
    "context": "The tram stops at the mill.",
    "question": "Where does the tram stop?",
    "document": "After ten weeks of tests, the town says that the new tram saves an hour a day.",
    "text": "I would gladly choose it again.",
}
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class PullConfig(Options):
    """Which adapter, and where to."""

    adapter: str = option(
        AUTO, "Registered name, NAME@ALIAS or NAME/VERSION; auto: by the wishes below."
    )
    task: str = option(ALL, "Wish: the task, or all.")
    base: str = option(ALL, "Wish: the base model, such as gemma-2b, or all.")
    max_g: float = option(0.0, "Wish: most grams CO2e that its training took; 0: any.", low=0.0)
    output: str = option(AUTO, "Folder that is made; auto: adapters/NAME-vVERSION.")
    merge: bool = option(False, "Also write a full model, the adapter merged into its base.")


@click.command(help="Download an adapter from the registry, by name or by wish; check it.")
@options_of(PullConfig)
def pull(**asked: str) -> None:
    """Checks what was asked, and only then imports what is heavy."""
    run(lambda: _pull(asked))


def _pull(asked: dict[str, str]) -> None:
    config = PullConfig.parse(asked)
    if config.adapter != AUTO and (config.task, config.base, config.max_g) != (ALL, ALL, 0.0):
        raise ConfigError("either adapter=, or a wish by task=, base= and max_g=")

    from green_tune import store

    store.check_reachable(store.tracking_uri())

    from green_tune.registry import Registry
    from green_tune.tracking import Tracker
    from green_tune.versions import ODD

    with Tracker(store.tracking_uri()).adopted("pull", "pull", asked):
        registry = Registry(store.tracking_uri())
        version = _version(config, registry)
        usual = f"{ODD.sub('-', version.name)}-v{version.number}"  # a store may name it ../x
        folder = _folder(config.output, FOLDER / usual)
        _download(version, registry, folder)
        _say(version, folder)
        if config.merge:
            _merge(folder)


def _version(config: PullConfig, registry: "Registry") -> "Version":
    from green_tune import adapters

    if config.adapter == AUTO:
        wishes = {"task": config.task, "base": config.base}
        wishes = {name: "" if wish == ALL else wish for name, wish in wishes.items()}
        return adapters.wished(registry.versions(), **wishes, max_g=config.max_g)
    version = adapters.find(config.adapter, registry).version
    if version is None:
        raise AdapterError(f"adapter={config.adapter} is no name in the registry; promote it first")
    return version


def _folder(output: str, usual: Path) -> Path:
    folder = usual if output == AUTO else Path(output)
    try:
        folder = folder.expanduser()
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.exists()  # whose name may be longer than any
    except (OSError, RuntimeError) as error:  # the latter of ~somebody who is not here
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"output={output} cannot be made: {why}") from None
    return folder


def _download(version: "Version", registry: "Registry", folder: Path) -> None:
    """Makes the folder, all of it or nothing; one that is there and whole is left as it is."""
    from green_tune import adapters, parcel
    from green_tune.versions import SEAL

    if folder.exists():
        if (folder / parcel.MANIFEST).exists():  # what Python has compiled of the loader's code
            shutil.rmtree(folder / parcel.CODE.split("/")[0] / "__pycache__", ignore_errors=True)
        try:
            parcel.check(folder, version.tags.get(SEAL, ""))
        except AdapterError as error:
            raise AdapterError(
                f"{folder} is there and is not {version} ({error}): remove it, or name another "
                "folder with output="
            ) from None
        click.echo(f"{folder} is there already, whole", err=True)
        return
    with adapters.whole(folder) as scratch:
        adapters.fetch_version(version, registry, scratch)
    if not parcel.same_code(folder):
        log.warning(
            "%s was made by another green-tune: read its code/ before you load it with MLflow",
            version,
        )


def _say(version: "Version", folder: Path) -> None:
    """Where it is, what it cost, and how it is used."""
    from green_tune import parcel

    mib = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / MIB
    aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
    click.echo(f"{version}{aliases}: {folder}, {mib:.1f} MiB, checksums verified")
    click.echo(_cost(version))
    recipe = json.loads((folder / parcel.ADAPTER / parcel.RECIPE).read_text())
    click.echo(f"""
import mlflow
model = mlflow.pyfunc.load_model({str(folder)!r})
print(model.predict([{_example(recipe)}]))""")


def _cost(version: "Version") -> str:
    from green_tune import cells, facts
    from green_tune.versions import QUALITY_ON

    loss, kg = version.pair
    said = [
        f"loss {loss:.4f}",
        f"{facts.mass(kg)} CO2e",
        facts.energy(version.figure("energy_kwh")),
        f"{cells.duration(version.figure('runtime_h'))} on {version.tags.get('gpu_type')}",
    ]
    names = [name for name in version.tags if name.startswith("quality.")]
    for name in names:
        if name != "quality.examples":
            said.append(f"{name.removeprefix('quality.')} {version.figure(name):.3g}")
    if names:
        said[-1] += f" on {version.tags.get(QUALITY_ON, 'unknown examples')}"
    basis = facts.basis(version.tags, version.figure("energy_modelled_share"))
    return f"{', '.join(said)}\n{basis}"


def _example(recipe: dict[str, Any]) -> str:
    fields = recipe["fields"]
    texts = {name: EXAMPLES.get(name, "...") for name in fields}
    return repr(texts if len(fields) > 1 else texts[fields[0]])


def _merge(folder: Path) -> None:
    from green_tune import adapters, merging, parcel

    merged = folder.with_name(f"{folder.name}-merged")
    if merged.exists():
        click.echo(f"{merged} is there already")
        return
    with adapters.whole(merged) as scratch:
        merging.merge(folder / parcel.ADAPTER, scratch)
    click.echo(f"merged: {merged}, for transformers, vLLM and llama.cpp's converter")


if __name__ == "__main__":
    pull()
