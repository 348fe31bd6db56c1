"""Links into the MLflow UI that land on a study's trials, and the view that they open there.

The UI opens in a mode that hides runs, so each link asks for the other one. The prepared view
is an experiment tag in the UI's own format, which is not documented; these are its traps:

- A filter in the link would switch the view off, so the link has its key alone, and the tag is
  written before the first trial: without it, the link opens an empty page.
- A view with a name is also listed under "Views" of the experiment, from where it opens again
  after a reload, which leaves only the filter of a view that was opened by its link.
- Charts stand below each other: beside the list of runs, two in a row are too small to read.
"""

import json
import sys
import time
import zlib
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from shutil import which
from urllib.parse import urlsplit

from green_tune.results import FRONT, KIND, STUDY

LOCAL_UI = "http://127.0.0.1:5000"
TAG = "mlflow.sharedViewState."
MODE = "workflowType=machine_learning"
OBJECTIVES = ("val_loss", "emissions_kg")
SHOWN_METRICS = (*OBJECTIVES, "emissions_rate_kg_per_h", "energy_kwh")


def where(uri: str, link: str) -> str:
    """How to open `link`: on a local store, the UI has to be started first."""
    if uri.startswith("http"):
        return f"MLflow UI: {link}"
    return f"MLflow UI: {_mlflow()} ui --backend-store-uri {_store(uri)}\n     then {link}"


def run_link(uri: str, experiment_id: str, run_id: str) -> str:
    """The page of one run."""
    return f"{_root(uri)}/#/experiments/{experiment_id}/runs/{run_id}?{MODE}"


def study_link(uri: str, experiment_id: str, study: str) -> str:
    """The chart page of a study's trials, by the view that `study_view` prepares."""
    return (
        f"{_root(uri)}/#/experiments/{experiment_id}/runs?{MODE}"
        f"&compareRunsMode=CHART&viewStateShareKey={_key(study)}"
    )


def study_view(study: str, dimensions: Sequence[str]) -> dict[str, str]:
    """The experiment tags that hold a study's view: the front, and parallel coordinates."""
    columns = [f"metrics.`{name}`" for name in SHOWN_METRICS]
    columns += [f"params.`{name}`" for name in dimensions]
    columns += [f"tags.`{FRONT}`"]
    state = {
        "searchFilter": _filter(study),
        "orderByKey": "metrics.`val_loss`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "runsPinned": [],
        "runsHidden": [],
        "runsHiddenMode": "SHOW_ALL",
        "groupBy": "",
        "compareRunSections": [
            {
                "uuid": "s1",
                "name": "Trials",
                "display": True,
                "isReordered": False,
                "columns": 1,
                "cardHeight": 330,
            }
        ],
        "compareRunCharts": [
            _chart("c1", "SCATTER")
            | {
                "xaxis": {"key": "emissions_kg", "type": "METRIC"},
                "yaxis": {"key": "val_loss", "type": "METRIC"},
            },
            _chart("c2", "PARALLEL")
            | {
                "showAllRuns": True,
                "selectedParams": list(dimensions),
                "selectedMetrics": list(OBJECTIVES),
            },
        ],
    }
    packed = b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now_ms = int(time.time() * 1000)
    named = {"name": study, "createdAt": now_ms, "updatedAt": now_ms, "state": f"deflate;{packed}"}
    return {
        TAG + _key(study): json.dumps(named),
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": "val_loss",
    }


def _mlflow() -> str:
    """The command as it can be typed here, whether or not its environment is active."""
    beside = Path(sys.executable).parent / "mlflow"
    if which("mlflow") == str(beside) or not beside.exists():
        return "mlflow"
    here = Path.cwd()
    return quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))


def _store(uri: str) -> str:
    """The store as it can be typed here; the URL of a database server may hold a password."""
    if not uri.startswith("sqlite"):
        return '"$MLFLOW_TRACKING_URI"'
    return quote(uri.replace(f"///{Path.cwd()}/", "///"))


def _chart(uuid: str, kind: str) -> dict[str, object]:
    return {
        "uuid": uuid,
        "type": kind,
        "metricSectionId": "s1",
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 100,
    }


def _filter(study: str) -> str:
    mark = '"' if "'" in study else "'"  # MLflow's grammar knows both, and no way to escape them
    trials = f"tags.`{STUDY}` = {mark}{study}{mark} AND tags.`{KIND}` = 'trial'"
    # A failed trial has the loss of where it broke off, which would stand on the chart as a result.
    return f"{trials} AND attributes.status = 'FINISHED'"


def _key(study: str) -> str:
    return f"{zlib.crc32(study.encode()):08x}"


def _root(uri: str) -> str:
    if not uri.startswith("http"):
        return LOCAL_UI
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
