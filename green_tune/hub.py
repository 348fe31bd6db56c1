"""The door to the Hugging Face hub: is a model or data set there, may we have it, and its rows.

One question is asked before anything heavy is imported, so that a closed network, a typing
error or a missing licence costs a second and one clear line. Files that are in the local cache
are used without asking.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import (
    HfApi,
    constants,
    get_session,
    hf_hub_download,
    hf_raise_for_status,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from green_tune.errors import DataError, ModelError, UsageError
from green_tune.models import read_config
from green_tune.secrecy import hide
from green_tune.tasks import HubData

T = TypeVar("T")
TIMEOUT_S = 10.0


def check_model(hub_id: str, revision: str) -> str:
    """The commit of a base model that can be loaded.

    Raises:
        ModelError: it is not there, not ours to use, or the hub cannot be reached.
    """
    try:
        cached = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    except HFValidationError as error:
        raise ModelError(f"model={hub_id} is no hub id: {error}") from None
    if isinstance(cached, str):
        return Path(cached).parent.name  # …/snapshots/<commit>/config.json
    api = HfApi()

    def ask() -> str:
        commit = api.model_info(hub_id, revision=revision, timeout=TIMEOUT_S).sha
        _check_access(hub_id)
        return str(commit)

    return _ask(ask, f"model {hub_id}", ModelError, revision)


def model_config(hub_id: str, commit: str) -> Mapping[str, Any]:
    """The config.json of a base model, a few hundred bytes; from the local cache if it is there.

    Raises:
        ModelError: the hub cannot be reached, or the file is no JSON object.
    """
    path = _ask(
        lambda: hf_hub_download(hub_id, "config.json", revision=commit, etag_timeout=TIMEOUT_S),
        f"model {hub_id}",
        ModelError,
        commit,
    )
    return read_config(Path(path))


def _check_access(hub_id: str) -> None:
    """`HfApi.auth_check` with a time limit, which that one has not."""
    url = f"{constants.ENDPOINT}/api/models/{hub_id}/auth-check"
    hf_raise_for_status(get_session().get(url, headers=build_hf_headers(), timeout=TIMEOUT_S))


def rows(source: HubData, split: str, limit: int) -> Iterator[dict[str, Any]]:
    """The first `limit` rows (0: all) of a split, its columns called as the task calls them.

    Raises:
        DataError: the data set is not there or the hub cannot be reached.
    """
    import datasets  # here, so that checking a model does not pay for it

    def fetch() -> Any:
        if not _is_cached(source):
            HfApi().dataset_info(source.id, timeout=TIMEOUT_S)
        part = f"{source.splits[split]}[:{limit}]" if limit else source.splits[split]
        return datasets.load_dataset(source.id, source.config, split=part)

    data = _ask(fetch, f"data set {source.id}", DataError, "main")
    for row in data.rename_columns(dict(source.columns)):
        yield dict(row)


def _is_cached(source: HubData) -> bool:
    folder = f"datasets--{source.id.replace('/', '--')}"
    return constants.HF_HUB_OFFLINE or (Path(constants.HF_HUB_CACHE) / folder).is_dir()


def _ask(question: Callable[[], T], what: str, error: type[UsageError], revision: str) -> T:
    """The answer, or the hub's refusal as one line that says what to do."""
    folder = "datasets/" if error is DataError else ""
    hub = hide(constants.ENDPOINT)  # a mirror's address may hold a password
    page = f"{hub}/{folder}{what.split()[-1]}"
    try:
        return question()
    except GatedRepoError:
        raise error(
            f"{what} is gated: accept its licence at {page}, make a token at "
            f"{hub}/settings/tokens, and set HF_TOKEN (or run `hf auth login`)"
        ) from None
    except RevisionNotFoundError:
        raise error(f"{what} has no revision {revision!r}; look at {page}") from None
    except RepositoryNotFoundError:
        raise error(
            f"{what} does not exist, or is private and HF_TOKEN is not set to a token that may "
            f"read it; look at {page}"
        ) from None
    except (HfHubHTTPError, OSError) as failure:
        if isinstance(failure, HfHubHTTPError) and failure.response.status_code in (401, 403):
            raise error(
                f"{what} is refused ({_line(failure)}): set HF_TOKEN (or run `hf auth login`) "
                f"to a token that may read it, from {hub}/settings/tokens"
            ) from None
        raise error(_unreachable(what, failure)) from None
    except Exception as failure:  # the HTTP library's errors share no base with OSError
        if type(failure).__module__.split(".")[0] not in {"httpx", "httpx2", "requests"}:
            raise
        raise error(_unreachable(what, failure)) from None


def _unreachable(what: str, failure: Exception) -> str:
    return (
        f"{what} is not in the local cache and the hub at {hide(constants.ENDPOINT)} cannot be "
        f"reached ({_line(failure)}); check the network or HF_ENDPOINT, or give a local folder "
        "instead"
    )


def _line(failure: Exception) -> str:
    """Its first line: the rest advises programmers."""
    return hide(str(failure).strip().split("\n")[0])


def cached_folder(hub_id: str, commit: str) -> Path | None:
    """The folder of a base model whose weights are in the local cache; None where they are not."""
    for name in ("model.safetensors.index.json", "model.safetensors"):
        if isinstance(found := try_to_load_from_cache(hub_id, name, revision=commit), str):
            return Path(found).parent
    return None
