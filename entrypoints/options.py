"""What all commands share: options made from config fields, errors as one line, signals.

Every option arrives as text, so that it can be logged exactly as it was typed; the config
reads and checks it. Nothing heavy is imported here: `--help` and bad input answer at once.
"""

import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, TypeVar

import click

from green_tune import secrecy, stop
from green_tune.config import Options
from green_tune.errors import (
    ConfigError,
    GreenTuneError,
    Stopped,
    StoreError,
)

if TYPE_CHECKING:
    from green_tune.query import Query
    from green_tune.results import RunRecord
    from green_tune.tracking import Tracker

Command = TypeVar("Command", bound=Callable[..., Any])


def options_of(
    *kinds: type[Options], defaults: Mapping[str, str] | None = None
) -> Callable[[Command], Command]:
    """Adds one option for each field of the given configs, spelt `--a_b` or `--a-b`."""

    def decorate(command: Command) -> Command:
        for spec in reversed([spec for kind in kinds for spec in fields(kind)]):
            default = {**kinds[0]().to_params(), **kinds[-1]().to_params(), **(defaults or {})}
            names = dict.fromkeys([f"--{spec.name}", f"--{spec.name.replace('_', '-')}"])
            help_text = spec.metadata["help"] + _bounds(spec.metadata)
            command = click.option(
                *names, spec.name, default=default[spec.name], help=help_text, show_default=True
            )(command)
        return command

    return decorate


def run(main: Callable[[], None]) -> None:
    """Runs a command's body: errors that a user can cause are one line, signals end it tidily."""
    _set_up_libraries()
    stop.listen()
    _end_with_launcher()
    try:
        _refuse_secrets()
        main()
    except GreenTuneError as error:
        _end(error, "\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))
        sys.exit(error.exit_code)
    except Stopped as stopped:
        notes = dict.fromkeys(getattr(stopped, "__notes__", []))  # of the runs that it has ended
        _end(stopped, "; ".join([str(stopped), *notes]))
        sys.exit(stopped.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("green_tune", "entrypoints"):
            raise
        _end(error, f"error: {error.name} is not installed for {sys.executable}: activate the "
                    "environment that `make install` makes, or use --env-manager uv")  # fmt: skip
        sys.exit(2)


def launchers_run() -> str:
    """The run that `mlflow run` has made for this process; empty without it."""
    return os.environ.get("MLFLOW_RUN_ID", "")


def found(query: "Query", tracker: "Tracker") -> "list[RunRecord]":
    """The runs that a query selects, but for the launcher's own: our parameters are logged to it.

    Raises:
        ConfigError: there are none; with which filter left none, and what there is.
    """
    from green_tune.query import emptied

    def find(query: "Query") -> "list[RunRecord]":
        return [record for record in tracker.find(query) if record.run_id != launchers_run()]

    if records := find(query):
        return records
    raise ConfigError(emptied(find, query))


def folder_for(output: str, what: str) -> Path | None:
    """The folder of output=, made before anything is spent on `what` goes there; None for `-`.

    Raises:
        ConfigError: it cannot be made, or takes no file.
    """
    if output == "-":
        return None
    try:
        folder = Path(output).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:  # the latter of ~somebody who is not here
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"output={output} is no folder for a {what}: {why}") from None
    return folder


def _refuse_secrets() -> None:
    """Before anything else: what is typed is logged, for all who see a run.

    Raises:
        ConfigError: a secret was typed; what it is, it does not say.
    """
    for name, text in click.get_current_context().params.items():
        if not secrecy.holds(text):
            continue
        error = ConfigError(
            f"{name}= holds a password or a token, and parameters are logged: give it in an "
            "environment variable (docs/threats.md says which), or in a file"
        )
        if run_id := launchers_run():
            error.add_note(
                "`mlflow run` has logged it already. Change it, and remove it there: "
                f"mlflow runs delete --run-id {run_id}; mlflow gc --run-ids {run_id}"
            )
        raise error


def _end(error: BaseException, line: str) -> None:
    """Prints the line; if the launcher's run is still nobody's, it gets the reason as well."""
    click.echo(secrecy.hide(line), err=True)
    if "MLFLOW_RUN_ID" not in os.environ or isinstance(error, (StoreError, ModuleNotFoundError)):
        return
    from green_tune.store import tracking_uri
    from green_tune.tracking import Tracker

    try:
        with Tracker(tracking_uri()).run("refused", click.get_current_context().info_name or ""):
            raise error
    except (type(error), StoreError):  # its line is on the screen; a store that is away has none
        return


def _bounds(meta: Mapping[str, Any]) -> str:
    if meta["choices"]:
        return f" One of {', '.join(meta['choices'])}."
    return ""


def _end_with_launcher() -> None:
    """Asks Linux for a SIGTERM when the launcher of `mlflow run` dies: it would orphan us."""
    if sys.platform == "linux" and "MLFLOW_RUN_ID" in os.environ:
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _set_up_libraries() -> None:
    """One voice on the screen: our warnings, and no library's chatter or telemetry.

    To be called before any of them is imported: they read their environment then.
    """
    sys.stderr = secrecy.Veil(sys.stderr)  # their errors quote addresses
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", force=True)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|torch")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for name in ("mlflow", "alembic", "httpx", "huggingface_hub", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # ours open the trials
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one for each file
    # Its own eight attempts take minutes, in which a run neither spools nor ends.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # An idle thread of torch on a CPU gives its core up after microseconds instead of spinning
    # on: as fast on a quiet machine, and three times as fast on one that has other work.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # They make a million objects as they are imported, none to be collected, and at Python's own
    # 700 the collector looks at all of them again and again.
    gc.set_threshold(10_000)
