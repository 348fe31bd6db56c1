"""The door to MLflow's model registry: adapters as versions of a model, aliases, files.

It knows versions and where their bytes are. What a version's folder holds is `parcel`'s affair, and
which version deserves an alias `choice`'s.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    ENDPOINT_NOT_FOUND,
    FEATURE_DISABLED,
    INVALID_PARAMETER_VALUE,
    NOT_IMPLEMENTED,
    RESOURCE_ALREADY_EXISTS,
    ErrorCode,
)
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

from green_tune import choice, store
from green_tune.choice import RULES
from green_tune.delivery import line, named, of_artifacts, twice
from green_tune.errors import AdapterError, ConfigError, StoreError
from green_tune.results import KIND
from green_tune.versions import ADAPTER_KIND, ADDRESS, ODD, Version

log = logging.getLogger(__name__)

FORCED = "green_tune.forced."  # of a model, with an alias: version/highest version at that time
MODEL_TYPE = "lora-adapter"
ABOUT = (
    "LoRA adapters of one base model for one task, promoted by green-tune. `best` has the lowest "
    "validation loss, `greenest` the lowest emissions near it, `balanced` is the knee of the front."
)
SHOWN = 10  # names in a line
DEEPEST = 2  # folders of a version that are looked into; further ones are files that nobody expects
ATTEMPTS = 10  # at an alias that others move as well
NO_REGISTRY = {
    ErrorCode.Name(code) for code in (ENDPOINT_NOT_FOUND, FEATURE_DISABLED, NOT_IMPLEMENTED)
}
INVALID_PATH = "Invalid path"  # how MLflow begins to say that a listed name has ..


class Registry:
    """The registry behind an MLflow tracking URI, or behind MLFLOW_REGISTRY_URI.

    Every method raises StoreError when it does not answer, or the store has none.
    """

    def __init__(self, uri: str) -> None:
        registry = store.registry_uri(uri)
        store.check_reachable(registry)
        mlflow.set_tracking_uri(uri)  # its addresses models:/... are looked up in the global store
        with _named():
            self._client = MlflowClient(uri, registry)

    def names(self) -> list[str]:
        """All registered models."""
        with _named():
            return sorted(model.name for model in _pages(self._client.search_registered_models))

    def versions(self, name: str = "") -> list[Version]:
        """All versions of one model, or of all; the oldest first.

        Raises:
            AdapterError: there is no model of that name; with those that there are.
        """
        with _named():
            if name and name not in (known := self.names()):
                raise AdapterError(f"no registered model is called {name}; {_there(name, known)}")
            models = {model.name: model for model in _pages(self._client.search_registered_models)}
            found = _pages(self._client.search_model_versions)
        every = [
            _version(one, dict(models[one.name].aliases))
            for one in found
            if one.name in models and name in ("", one.name)
        ]
        return sorted(every, key=lambda version: (version.name, version.number))

    def version(self, name: str, wanted: str) -> Version:
        """A version by its number, its alias, or "latest".

        Raises:
            AdapterError: there is none; with those that there are.
        """
        versions = self.versions(name)
        matches = (
            lambda v: str(v.number) == wanted,  # first: an alias may be a number as well
            lambda v: wanted in v.aliases,
            lambda v: wanted == "latest" and v is versions[-1],
        )
        for match in matches:
            if found := next(filter(match, versions), None):
                return found
        aliases = sorted({alias for version in versions for alias in version.aliases})
        raise AdapterError(
            f"{name} has no version or alias {wanted}; it has "
            f"{_listed('alias', aliases)} and {_listed('version', [v.number for v in versions])}"
        )

    def of_adapter(self, name: str, address: str) -> Version | None:
        """The version that was made of an adapter; None where there is none yet."""
        if name not in self.names():
            return None
        same = (v for v in self.versions(name) if v.tags.get(ADDRESS) == address)
        return next(same, None)

    def register(
        self, name: str, folder: Path, run_id: str, *, tags: Mapping[str, str], description: str
    ) -> Version:
        """A new version of a folder; the one that another process has made of it meanwhile."""
        with _named():
            model_id = self._uploaded(folder, run_id, tags)
            try:
                self._make(name)
                made = self._client.create_model_version(
                    name,
                    source=f"models:/{model_id}",
                    run_id=run_id,
                    tags=dict(tags),
                    description=description,
                    model_id=model_id,
                )
            except BaseException:
                self._discard(model_id)
                raise
        version = self.version(name, str(made.version))
        first = self.of_adapter(name, tags[ADDRESS])
        if first is None or first.number == version.number:
            return version
        with _named():
            self._client.delete_model_version(name, str(version.number))
            self._client.delete_logged_model(model_id)
        return first

    def _uploaded(self, folder: Path, run_id: str, tags: Mapping[str, str]) -> str:
        """A logged model of MLflow with the folder's files, among the outputs of its run."""
        experiment_id = self._client.get_run(run_id).info.experiment_id
        model = self._client.create_logged_model(
            experiment_id=experiment_id,
            name=f"lora-{ODD.sub('-', tags[ADDRESS].rpartition('/')[2])}",
            source_run_id=run_id,
            tags=dict(tags),
            model_type=MODEL_TYPE,
        )
        try:
            with of_artifacts():
                self._client.log_model_artifacts(model.model_id, str(folder))
            self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
            self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        except BaseException:
            self._discard(model.model_id)
            raise
        return str(model.model_id)

    def _discard(self, model_id: str) -> None:
        """Removes what came to nothing; a store that is away must not hide why."""
        try:
            self._client.delete_logged_model(model_id)
        except MlflowException as error:
            log.warning("the logged model %s is left behind: %s", model_id, line(error))

    def _make(self, name: str) -> None:
        try:
            self._client.create_registered_model(name, {KIND: ADAPTER_KIND}, ABOUT)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise

    def set_tags(self, version: Version, tags: Mapping[str, str]) -> None:
        """Writes or overwrites tags of a version."""
        with _named():
            for key, text in tags.items():
                to = (version.name, str(version.number), key, text)
                twice(self._client.set_model_version_tag, *to)

    def move(
        self, alias: str, mine: Version, *, within_percent: float, force: bool = False
    ) -> Version:
        """Gives an alias to a version if it is better by the alias's rule; says who then has it.

        An alias of the name of a rule belongs to the version that the rule prefers among all that
        were promoted for it: what is set is a function of what the registry holds, and it is looked
        at again afterwards, so that of two promotions at once the better one has it in the end.
        Any other alias stays where it is, unless forced.

        Raises:
            AdapterError: others keep moving it.
            ConfigError: MLflow allows no such alias.
        """
        if force and alias in RULES:
            self._force(alias, mine)
        for _ in range(ATTEMPTS):
            versions = self.versions(mine.name)
            holder = next((v for v in versions if alias in v.aliases), None)
            wanted = self._wanted(alias, mine, holder, versions, within_percent, forced=force)
            if holder and wanted.number == holder.number:
                return holder
            self._set(alias, wanted)
        raise AdapterError(f"others keep moving the alias {alias} of {mine.name}; try again")

    def _wanted(
        self,
        alias: str,
        mine: Version,
        holder: Version | None,
        versions: Sequence[Version],
        within_percent: float,
        *,
        forced: bool,
    ) -> Version:
        if alias not in RULES:
            return mine if forced or holder is None else holder
        if holder and holder.terms != mine.terms and not forced:
            return holder
        kept = self._unforced(alias, mine.name)
        asked = [v for v in versions if alias in v.rules or v.number == mine.number]
        same = [v for v in asked if v.is_ours and v.terms == mine.terms and kept(v)]
        if holder and holder.is_ours and holder.terms == mine.terms and kept(holder):
            same = [holder, *same]  # the first of equals stays
        if not same:  # what was forced is gone, or is another's
            return holder or mine
        known = [pair for version in same for pair in version.front]
        return choice.pick(alias, same, within_percent=within_percent, known=known)

    def _force(self, alias: str, mine: Version) -> None:
        """Notes that from now on only this version and later ones may have the alias."""
        highest = self.versions(mine.name)[-1].number
        with _named():
            note = (mine.name, FORCED + alias, f"{mine.number}/{highest}")
            twice(self._client.set_registered_model_tag, *note)

    def _unforced(self, alias: str, name: str) -> Callable[[Version], bool]:
        with _named():
            text = self._client.get_registered_model(name).tags.get(FORCED + alias, "0/0")
        noted = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)  # anybody may write there
        chosen, highest = map(int, noted.groups()) if noted else (0, 0)
        return lambda v: v.number == chosen or v.number > highest

    def _set(self, alias: str, version: Version) -> None:
        to = (version.name, alias, str(version.number))
        try:
            twice(self._client.set_registered_model_alias, *to)
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(INVALID_PARAMETER_VALUE):
                raise ConfigError(f"alias={alias} is not possible: {line(error)}") from None
            raise StoreError(f"the model registry cannot be used: {line(error)}") from error

    def place(self, of: Version | str) -> str:
        """The address of the files of a version, or of runs:/ID/FOLDER.

        MLflow's own runs:/ would add the files of a logged model with the folder's name.
        """
        with _named():
            if isinstance(of, Version):
                return str(self._client.get_model_version_download_uri(of.name, str(of.number)))
            run_id, _, folder = of.removeprefix("runs:/").partition("/")
            return f"{self._client.get_run(run_id).info.artifact_uri}/{folder}"

    def files(self, place: str) -> dict[str, int]:
        """The files at an address, as the store lists them; in bytes.

        Raises:
            AdapterError: one has a name that leads out of the folder; MLflow says so of `..`.
        """
        with _named(), of_artifacts():
            try:
                return dict(_listed_files(place, ""))
            except MlflowException as error:
                if not error.message.startswith(INVALID_PATH):
                    raise
                raise AdapterError(
                    f"{place} holds a file whose name leads out of the folder: do not use it, and "
                    "tell whoever made it"
                ) from error

    def fetch(self, place: str, path: str, to: Path) -> None:
        """Downloads one file of an address into a folder, under the same path."""
        target = to / Path(path).parent
        target.mkdir(parents=True, exist_ok=True)
        with _named(), of_artifacts():
            mlflow.artifacts.download_artifacts(
                artifact_uri=f"{place}/{path}", dst_path=str(target)
            )


def _listed_files(place: str, under: str) -> Iterator[tuple[str, int]]:
    """Files below an address; names as the store gives them, which may be anything."""
    for file in mlflow.artifacts.list_artifacts(artifact_uri=f"{place}/{under}".rstrip("/")):
        path = f"{under}/{Path(file.path).name}".lstrip("/")
        if file.is_dir and path.count("/") < DEEPEST:
            yield from _listed_files(place, path)
        else:
            yield path, int(file.file_size or 0)


def _version(found: Any, aliases: Mapping[str, object]) -> Version:
    name, number = str(found.name), int(found.version)
    return Version(
        name=name,
        number=number,
        run_id=str(found.run_id or ""),
        source=str(found.source),
        tags=dict(found.tags),
        aliases=tuple(alias for alias, of in aliases.items() if int(str(of)) == number),
    )


def _pages(search: Callable[..., Any]) -> list[Any]:
    """All that a search of MLflow finds, page by page."""
    found, token = [], None
    while True:
        page = search(page_token=token)
        found += page
        if not (token := page.token):
            return found


def _there(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]}?"
    if not known:
        return "the registry is empty: mlflow run . -e promote -P study=..."
    return f"there is {', '.join(known[:SHOWN])}" + " and others" * (len(known) > SHOWN)


def _listed(what: str, found: Sequence[object]) -> str:
    """The aliases best and greenest; no alias; the versions 1, 2."""
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    if not found:
        return f"no {what}"
    names = ", ".join(map(str, found[-SHOWN:]))
    return f"the {what if len(found) == 1 else plural} {names}"


@contextmanager
def _named() -> Iterator[None]:
    """Gives a registry's refusal its own name, and says where a store has none."""
    try:
        with named():
            yield
    except StoreError as error:
        cause = error.__cause__
        code = getattr(cause, "error_code", "")
        if code in NO_REGISTRY or isinstance(cause, UnsupportedModelRegistryStoreURIException):
            raise StoreError(
                "this store has no model registry; use an SQLite file or an MLflow server with a "
                "database, or name another in MLFLOW_REGISTRY_URI"
            ) from error
        raise
