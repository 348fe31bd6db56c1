"""Links into the MLflow UI that land on a study's trials, and the view that they open there.

The UI opens in a mode that hides runs, so each link asks for the other one. The prepared view
is an experiment tag in the UI's own format, which is not documented: without it, the link still
opens on the right runs.
"""

import json
import sys
import zlib
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from shutil import which

from green_tune.tracking import STUDY

LOCAL_UI = "http://127.0.0.1:5000"
TAG = "mlflow.sharedViewState."
SHOWN_METRICS = ("val_loss", "emissions_kg", "emissions_rate_kg_per_h", "runtime_h", "energy_kwh")


def where(uri: str, link: str) -> str:
    """How to open `link`: on a local store, the UI has to be started first."""
    if uri.startswith("http"):
        return f"MLflow UI: {link}"
    here = uri.replace(f"{Path.cwd()}/", "")
    return f"MLflow UI: {_mlflow()} ui --backend-store-uri {here}\n     then {link}"


def run_link(uri: str, experiment_id: str, run_id: str) -> str:
    """The page of one run."""
    return f"{_root(uri)}/#/experiments/{experiment_id}/runs/{run_id}"


def study_link(uri: str, experiment_id: str, study: str) -> str:
    """The chart page of a study's trials, by the view that `study_view` prepares."""
    return (
        f"{_root(uri)}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
        f"&compareRunsMode=CHART&viewStateShareKey={_key(study)}"
    )


def study_view(study: str, dimensions: Sequence[str]) -> dict[str, str]:
    """The experiment tags that hold a study's view: the front, and parallel coordinates."""
    objectives = ["val_loss", "emissions_kg"]
    columns = [f"metrics.`{name}`" for name in SHOWN_METRICS]
    columns += [f"params.`{name}`" for name in dimensions]
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
        "runsHiddenMode": "SHOWALL",
        "groupBy": "",
        "compareRunSections": [
            {"uuid": "s1", "name": "Study", "display": True, "isReordered": False}
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
                "selectedMetrics": objectives,
            },
        ],
    }
    packed = b64encode(zlib.compress(json.dumps(state).encode())).decode()
    return {
        TAG + _key(study): f"deflate;{packed}",
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": "val_loss",
    }


def _mlflow() -> str:
    """The command as it can be typed here, whether or not its environment is active."""
    beside = Path(sys.executable).parent / "mlflow"
    if which("mlflow") == str(beside) or not beside.exists():
        return "mlflow"
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)


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
    return f"tags.`{STUDY}` = '{study}' AND tags.`green_tune.kind` = 'trial'"


def _key(study: str) -> str:
    return f"{zlib.crc32(study.encode()):08x}"


def _root(uri: str) -> str:
    return uri.rstrip("/") if uri.startswith("http") else LOCAL_UI
