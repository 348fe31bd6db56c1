"""Links into the MLflow UI that land on a study's trials, and the view that they open there.

The UI opens in a mode that hides runs, so each link asks for the other one. The prepared view
is an experiment tag in the UI's own format, which is not documented; these are its traps:

- A filter in the link would switch the view off, so the link has its key alone, and the tag is
  written before the first trial: without it, the link opens an empty page.
- A view with a name is also listed under "Views" of the experiment, from where it opens again
  after a reload, which leaves only the filter of a view that was opened by its link.
- The UI adds sections for all metrics, in alphabetical order with ours, unless the order counts as
  a user's own (`isAccordionReordered`).
- Charts stand below each other: beside the list of runs, two in a row are too small to read.
"""

import json
import sys
import time
import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from shutil import which
from urllib.parse import urlsplit

from green_tune.blocks import HYPERPARAMETERS
from green_tune.results import FRONT, KIND, STUDY

LOCAL_UI = "http://127.0.0.1:5000"
TAG = "mlflow.sharedViewState."
MODE = "workflowType=machine_learning"
OBJECTIVES = ("val_loss", "emissions_kg")
SHOWN_METRICS = (*OBJECTIVES, "emissions_rate_kg_per_h", "runtime_h", "energy_kwh")
SHOWN = {"metricSectionId": "s1", "deleted": False, "isGenerated": False, "runsCountToCompare": 100}
RESULTS = "metrics.val_loss > 0 AND metrics.emissions_kg > 0 AND attributes.status = 'FINISHED'"
BESIDE = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "val_loss",
}


def where(uri: str, link: str) -> str:
    """How to open `link`: on a local store, the UI has to be started first."""
    if uri.startswith("http"):
        return f"MLflow UI: {link}"
    return f"MLflow UI: {_mlflow()} ui --backend-store-uri {_store(uri)}\n     then {link}"


def run_link(uri: str, experiment_id: str, run_id: str) -> str:
    """The page of one run."""
    return f"{_root(uri)}/#/experiments/{experiment_id}/runs/{run_id}?{MODE}"


def artifact_link(uri: str, experiment_id: str, run_id: str, name: str) -> str:
    """The page of one of a run's artifacts."""
    return f"{_root(uri)}/#/experiments/{experiment_id}/runs/{run_id}/artifacts/{name}?{MODE}"


def model_link(uri: str, name: str) -> str:
    """The page of a registered model."""
    return f"{_root(uri)}/#/models/{name}"


def study_link(uri: str, experiment_id: str, study: str) -> str:
    """The chart page of a study's trials, by the view that `study_view` prepares."""
    return (
        f"{_root(uri)}/#/experiments/{experiment_id}/runs?{MODE}"
        f"&compareRunsMode=CHART&viewStateShareKey={_key(study)}"
    )


def study_view(study: str, dimensions: Sequence[str]) -> dict[str, str]:
    """The experiment tags that hold a study's view: the front, and parallel coordinates."""
    charts = [_scatter("emissions_kg", "val_loss"), _parallel(dimensions)]
    view = _view(study, _filter(study), charts, dimensions)
    return {TAG + _key(study): view} | BESIDE


def usual_views() -> dict[str, str]:
    """The experiment tags that hold views on all results, which its "Views" menu lists by name.

    They answer what is asked most: what each model costs on each GPU; what a lower loss costs; and
    which hyperparameters that depends on.
    """
    where, dimensions = ("base_model", "gpu_type"), tuple(HYPERPARAMETERS)
    bars = [_bars(name) for name in ("emissions_kg", "emissions_rate_kg_per_h", "runtime_h")]
    front, rates = (_scatter("emissions_kg", name) for name in ("val_loss", "runtime_h"))
    made = {
        "Cost by model and GPU": _view("Cost by model and GPU", RESULTS, bars, (), where),
        "Loss against emissions": _view("Loss against emissions", RESULTS, [front, rates]),
        "Hyperparameters": _view("Hyperparameters", RESULTS, [_parallel(dimensions)], dimensions),
    }
    return {TAG + _key(name): view for name, view in made.items()} | BESIDE


def usual_link(uri: str, experiment_id: str, name: str) -> str:
    """The chart page of one of the `usual_views`."""
    return study_link(uri, experiment_id, name)


def _view(
    name: str,
    text: str,
    charts: Sequence[Mapping[str, object]],
    params: Sequence[str] = (),
    group: Sequence[str] = (),
) -> str:
    """A view in the UI's own format: which runs, in which columns and charts; grouped by tags."""
    columns = [f"metrics.`{metric}`" for metric in SHOWN_METRICS]
    columns += [f"tags.`{tag}`" for tag in ("base_model", "gpu_type")]
    columns += [f"params.`{param}`" for param in params]
    columns += [f"tags.`{FRONT}`"]
    keys = [{"mode": "tag", "groupByData": tag} for tag in group]
    state = {
        "searchFilter": text,
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
        "groupBy": {"aggregateFunction": "average", "groupByKeys": keys} if group else "",
        "isAccordionReordered": True,
        "compareRunSections": [
            {
                "uuid": "s1",
                "name": name,
                "display": True,
                "isReordered": False,
                "columns": 1,
                "cardHeight": 330,
            }
        ],
        "compareRunCharts": [
            {"uuid": f"c{number}", **SHOWN, **chart} for number, chart in enumerate(charts, start=1)
        ],
    }
    packed = b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now_ms = int(time.time() * 1000)
    named = {"name": name, "createdAt": now_ms, "updatedAt": now_ms, "state": f"deflate;{packed}"}
    return json.dumps(named)


def _scatter(x: str, y: str) -> dict[str, object]:
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return {"type": "SCATTER", **axes}


def _parallel(dimensions: Sequence[str]) -> dict[str, object]:
    chosen = {"selectedParams": list(dimensions), "selectedMetrics": list(OBJECTIVES)}
    return {"type": "PARALLEL", "showAllRuns": True, **chosen}


def _bars(metric: str) -> dict[str, object]:
    return {"type": "BAR", "metricKey": metric}


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
