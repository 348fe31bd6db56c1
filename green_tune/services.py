"""MLflow's server and the Hugging Face hub: do they answer, let us in, and fit what is here?

Each function is a look, or a part of one, of `doctor`. All questions have a time limit and nothing
is asked twice. A door to MLflow, for its login and plain requests, and to huggingface_hub. What is
in a database `schemas` knows, what is in an artifact store `deposit`.
"""

import json
import os
import re
import time
from collections.abc import Generator, Iterator
from email.utils import parsedate_to_datetime
from importlib import metadata
from typing import Any
from urllib.parse import unquote, urlsplit

from green_tune import store
from green_tune.checkup import WORTH, WRONG, Finding, first_line, gone, ms, off, refused
from green_tune.errors import StoreError

ANSWER_S = 4.0
API = "/api/2.0/mlflow"
OK, NO_LOGIN, NOT_FOUND, REFUSALS = 200, 401, 404, (401, 403)


class Answer:
    """What an MLflow server says to one request, with the login that MLflow would give."""

    def __init__(self, uri: str, path: str, method: str = "GET", **given: Any) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        begun = time.monotonic()
        limits = {"max_retries": 0, "timeout": ANSWER_S, "raise_on_status": False}
        ask: Any = http_request
        login: Any = get_default_host_creds
        try:
            got = ask(login(uri), path, method, **limits, **given)
        except MlflowException as error:
            raise StoreError(
                f"{store.address(uri)} gives no answer ({_why(error)}); look at the server, or at "
                "the proxy before it"
            ) from None
        self.seconds = time.monotonic() - begun
        self.status, self.text, self.content = got.status_code, got.text, got.content
        self.ok = got.ok
        self.date = got.headers.get("Date", "")

    def json(self) -> dict[str, Any]:
        """The answer's object; empty where it is none."""
        try:
            found = json.loads(self.text)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def reason(self) -> str:
        """What a refusal says."""
        return str(self.json().get("message") or first_line(self.text or self.status))


def _why(error: Exception) -> str:
    """The innermost cause: the outer ones repeat the address."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return first_line(error)


def tracking(uri: str) -> Generator[Finding, None, str | None]:
    """The tracking server; returns where the artifacts of the experiment in use go."""
    here = metadata.version("mlflow")
    version = Answer(uri, "/version")
    there = version.text.strip()
    if version.status == NO_LOGIN:
        yield _not_let_in(uri, version)
        return None
    if not version.ok or not re.match(r"\d+\.\d+", there):
        what = f"{store.address(uri)} answers, but is no MLflow server (status {version.status})"
        yield Finding(name="tracking", what=what, level=WRONG, fix="correct MLFLOW_TRACKING_URI")
        return None
    got = Answer(uri, f"{API}/experiments/search", "POST", json={"max_results": 1})
    if not got.ok:
        yield _not_let_in(uri, got)
        return None
    what = f"{store.address(uri)} answers in {ms(got.seconds)}, MLflow {there}{_as_whom(uri)}"
    yield Finding(name="tracking", what=what)
    yield from _of_another_version(there, here)
    yield from _skewed("tracking", "the server's", version.date)
    name, got = _experiment(uri)
    if got.status == NOT_FOUND:
        got = _experiment_by_id(uri, "0")  # to be made, with its files beside the default's
    found = got.json().get("experiment")
    if not got.ok or found is None:
        fix = "name another one in MLFLOW_EXPERIMENT_NAME, or ask for the right to it"
        what = f"experiment {name}: {got.reason}"
        yield Finding(name="experiment", what=what, level=WRONG, fix=fix)
        return None
    yield from gone(name, found["lifecycle_stage"])
    return str(found["artifact_location"])


def _not_let_in(uri: str, got: Answer) -> Finding:
    address = store.address(uri)
    if "Invalid Host header" in got.text:
        host = urlsplit(uri).netloc.rpartition("@")[2]
        what, fix = f"{address} does not serve this name", f"its --allowed-hosts must have {host}"
    elif got.status in REFUSALS:
        who = _as_whom(uri) or " without a login"
        what, fix = f"{address} refuses us{who} (status {got.status})", f"set {store.LOGIN}"
    else:
        what = f"{address} fails (status {got.status}): {got.reason}"
        fix = "look at the server's log: its database may be away"
    return Finding(name="tracking", what=what, level=WRONG, fix=fix)


def _as_whom(uri: str) -> str:
    from mlflow.utils.credentials import read_mlflow_creds

    given = read_mlflow_creds()
    if given.username and given.password:
        return f", as {given.username}"
    if os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return ", by a token"
    return f", as {unquote(user)}" if (user := urlsplit(uri).username) else ""


def _of_another_version(there: str, here: str) -> Iterator[Finding]:
    major, minor = there.split(".")[:2]
    if [major, minor] == here.split(".")[:2]:
        return
    level = WORTH if major == here.split(".", maxsplit=1)[0] else WRONG
    what = f"the server is MLflow {there}, and {here} is here: they may misunderstand each other"
    fix = f"run the server on {here}, as docker/compose.yaml does"
    yield Finding(name="tracking", what=what, level=level, fix=fix)


def _skewed(name: str, whose: str, date: str) -> Iterator[Finding]:
    """Where two clocks are further apart than workers of a study may be."""
    try:
        ahead_s = time.time() - parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):  # it did not say
        return
    yield from off(name, whose, ahead_s)


def _experiment(uri: str) -> tuple[str, Answer]:
    """The experiment that runs would go to, as the tracker chooses it."""
    if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return number, _experiment_by_id(uri, number)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
    asked = {"experiment_name": name}
    return name, Answer(uri, f"{API}/experiments/get-by-name", params=asked)


def _experiment_by_id(uri: str, number: str) -> Answer:
    return Answer(uri, f"{API}/experiments/get", params={"experiment_id": number})


def registry(uri: str) -> Iterator[Finding]:
    """The model registry, which may have an address of its own."""
    address = store.registry_uri(uri)
    if not address.startswith("http"):
        same = address == uri
        what = "in the same database" if same else f"{store.address(address)}: not looked at"
        yield Finding(name="registry", what=what)
        return
    try:
        store.check_reachable(address)
        got = Answer(address, f"{API}/registered-models/search", params={"max_results": 1})
    except StoreError as error:
        yield refused("registry", error)
        return
    if got.ok:
        yield Finding(name="registry", what=f"answers in {ms(got.seconds)}")
    else:
        what = f"refuses (status {got.status}): {got.reason}"
        fix = (
            "a server on a database, or another address in MLFLOW_REGISTRY_URI, to promote and pull"
        )
        yield Finding(name="registry", what=what, level=WRONG, fix=fix)


def hub() -> Iterator[Finding]:
    """The hub: does it answer, is there a token, is that accepted, and for which base models."""
    from huggingface_hub import constants, get_token

    token, source = get_token(), _token_source(constants.HF_TOKEN_PATH)
    unknown = "; whether gated licences were accepted cannot be known offline"
    if constants.HF_HUB_OFFLINE:
        what = f"HF_HUB_OFFLINE is set: models of the cache and folders only{unknown}"
        yield Finding(name="hub", what=what, level=WORTH, fix="unset HF_HUB_OFFLINE to download")
        yield _token(token, f"{source}: not tried")
        return
    begun = time.monotonic()
    try:
        status = _asked("/api/whoami-v2" if token else "/api/models?limit=1")
    except StoreError as error:
        fix = "check the network or HF_ENDPOINT; tiny, folders and cached models need no hub"
        yield Finding(name="hub", what=f"{error}{unknown}", level=WORTH, fix=fix)
        yield _token(token, f"{source}: not tried")
        return
    yield Finding(
        name="hub", what=f"{constants.ENDPOINT} answers in {ms(time.monotonic() - begun)}"
    )
    if token and status != OK:
        fix = "make a new token in the hub's settings, or unset it: downloads fail with this one"
        what = f"{source}: refused (status {status})"
        yield Finding(name="token", what=what, level=WRONG, fix=fix)
        return
    yield _token(token, f"{source}: accepted")
    if token:
        yield _licences()


def _asked(path: str) -> int:
    """The status of the hub's answer.

    Raises:
        StoreError: there is none.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url, headers = f"{constants.ENDPOINT}{path}", build_hf_headers()
    try:
        return int(get_session().get(url, headers=headers, timeout=ANSWER_S).status_code)
    except Exception as error:  # the HTTP library's errors share no base with OSError
        library = type(error).__module__.split(".")[0]
        if library not in {"httpx", "httpx2", "requests"} and not isinstance(error, OSError):
            raise
        raise StoreError(f"{constants.ENDPOINT} gives no answer ({first_line(error)})") from None


def _token_source(path: str) -> str:
    """Where the token comes from, as huggingface_hub looks for it."""
    for name in ("HF_OIDC_RESOURCE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name):
            return name
    return path


def _token(token: str | None, what: str) -> Finding:
    if token:
        return Finding(name="token", what=what)
    fix = "export HF_TOKEN=..., or hf auth login; public models need none"
    what = "none: gated base models (the table's four are) cannot be downloaded"
    return Finding(name="token", what=what, level=WORTH, fix=fix)


def _licences() -> Finding:
    from green_tune.models import MODELS

    refusing = [model for model in MODELS if _asked(f"/api/models/{model.hub_id}/auth-check") != OK]
    if not refusing:
        return Finding(name="licences", what="the table's base models may be downloaded")
    pages = ", ".join(f"{model.name} ({model.hub_id})" for model in refusing)
    fix = "accept each one's licence on its page of the hub, with the account of this token"
    return Finding(name="licences", what=f"not ours yet: {pages}", level=WORTH, fix=fix)
