"""The image, Kubernetes Jobs and SkyPilot's task: each read by the tool that reads it for users."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from program import PARTS, ROOT, copy_to

from green_tune import intensity
from green_tune.hardware import GPUS, identify

DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
TABLE: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker" / "gpus.yaml").read_text())
MLPROJECT: dict[str, Any] = yaml.safe_load((ROOT / "MLproject").read_text())
IMAGE = "registry.example.com/team/green-tune:1"
OLDEST, NEWEST = "1.33", "1.37"  # Kubernetes; a retry of each worker by itself is stable since 1.33
SKYPILOT = "skypilot==0.14.1"
TORCHS = (7, 5)  # the oldest capability that a build for CUDA 13 has kernels for
QUICK = "-P gpu=cpu -P epochs=1 -P batch_size=8 -P max_train_examples=16 -P max_eval_examples=4"
PAGES = [ROOT / "docs" / "cluster.md", ROOT / "docs" / "cloud.md"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A clone, where the scripts may write."""
    folder = tmp_path / "clone"
    folder.mkdir()
    copy_to(folder)
    shutil.copytree(ROOT / "docker", folder / "docker")
    return folder


def script(project: Path, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, f"docker/{name}.py", *arguments],
        cwd=project, capture_output=True, text=True, check=False,
    )  # fmt: skip


def prepared(project: Path, *arguments: str, cluster: str = "nvidia") -> Path:
    """The folder that prepare.py writes."""
    done = script(project, "kubernetes/prepare", "--cluster", cluster, "--image", IMAGE, *arguments)
    assert done.returncode == 0, done.stderr
    return project / "build" / "kubernetes"


def library(name: str) -> Any:
    """A module without types; Kubernetes' take a second to import, and few tests need them."""
    return importlib.import_module(name)


def built(template: Path, command: str = "python -m entrypoints.train") -> dict[str, Any]:
    """What MLflow makes of a template: its own functions, which need no cluster."""
    kubernetes = library("mlflow.projects.kubernetes")
    made: dict[str, Any] = kubernetes._get_kubernetes_job_definition(
        "green-tune",
        IMAGE,
        "sha256:" + "0" * 64,
        kubernetes._get_run_command([command]),
        {"MLFLOW_RUN_ID": "1"},
        yaml.safe_load(template.read_text()),
    )
    return made


def check_job(job: Mapping[str, Any]) -> None:
    """Raises when Kubernetes would not know a field or its type."""
    for version in (OLDEST, NEWEST):
        library("kubernetes_validate").validate(dict(job), version, strict=True)


def copied() -> list[str]:
    """What the Dockerfile takes from the repository."""
    lines = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
    return [path for line in lines for path in line.split()]


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run(
        ["hadolint", "--failure-threshold", "style", "docker/Dockerfile"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


def test_all_that_mlflow_run_needs_is_copied_into_the_image_and_let_through_to_it() -> None:
    first, *lines = (ROOT / ".dockerignore").read_text().split()
    let_through = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert first == "*"
    assert set(copied()) == let_through
    assert set(copied()) >= {*PARTS, "pyproject.toml"}
    assert [path for path in copied() if not (ROOT / path).exists()] == []


def test_the_image_installs_the_pins_before_it_sees_code() -> None:
    (line,) = re.findall(r"^ +(sed .+) > /tmp/pins.txt", DOCKERFILE, re.MULTILINE)
    pins = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=True
    )
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert pins.stdout.split() == declared["dependencies"]
    assert DOCKERFILE.index("COPY conda.yaml") < DOCKERFILE.index("pins.txt")
    assert DOCKERFILE.index("-r /tmp/pins.txt") < DOCKERFILE.index("COPY green_tune")
    (quant,) = declared["optional-dependencies"]["quant"]
    assert f"-r /tmp/pins.txt {quant} " in DOCKERFILE


def test_the_image_runs_as_the_user_that_the_jobs_name() -> None:
    pod = yaml.safe_load((ROOT / "docker" / "kubernetes" / "job.yaml").read_text())["spec"]
    (user,) = re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)
    assert pod["template"]["spec"]["securityContext"]["runAsUser"] == int(user) > 0
    assert f"--uid {user}" in DOCKERFILE


def test_every_gpu_of_the_table_has_a_line_and_no_other() -> None:
    assert list(TABLE) == [gpu.name for gpu in GPUS]


def test_a_nodes_label_is_the_name_by_which_the_gpu_is_known_on_the_node() -> None:
    found = {
        label: identify(label.replace("-", " "))
        for row in TABLE.values()
        for label in row.get("nvidia", [])
    }
    assert {label: gpu and gpu.name for label, gpu in found.items()} == {
        label: name for name, row in TABLE.items() for label in row.get("nvidia", [])
    }


def test_a_gpu_has_amazons_and_googles_names_where_hardware_says_that_they_have_it() -> None:
    for gpu in GPUS:
        if gpu.capability < TORCHS:
            assert TABLE[gpu.name] == {}
            continue
        row, families = TABLE[gpu.name], re.findall(r"AWS (\w+)", gpu.found_in)
        assert ("aws" in row, "gke" in row) == (bool(families), "GCP" in gpu.found_in), gpu.name
        assert all(row["aws"].startswith(family) for family in families), gpu.name


@pytest.mark.parametrize("cluster", ["gke", "eks", "nvidia"])
def test_kubernetes_knows_every_field_of_every_job_that_mlflow_makes(
    cluster: str, project: Path
) -> None:
    folder = prepared(project, cluster=cluster)
    column = {"eks": "aws"}.get(cluster, cluster)
    assert {path.stem for path in folder.glob("*.json")} == {n for n in TABLE if column in TABLE[n]}
    for config in folder.glob("*.json"):
        template = Path(json.loads(config.read_text())["kube-job-template-path"])
        job = built(template)
        check_job(job)
        pod = job["spec"]["template"]["spec"]
        assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 1}
        assert TABLE[config.stem][column] in (nodes(pod), nodes(pod)[0])


def nodes(pod: Mapping[str, Any]) -> Sequence[str]:
    """The labels' values that a pod's node may have."""
    if "nodeSelector" in pod:
        return list(pod["nodeSelector"].values())
    required = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    ((expression,),) = [term["matchExpressions"] for term in required["nodeSelectorTerms"]]
    values: list[str] = expression["values"]
    return values


def test_a_field_that_kubernetes_does_not_know_is_seen(project: Path) -> None:
    job = built(prepared(project) / "t4.yaml")
    job["spec"]["template"]["spec"]["restartPolice"] = "Never"
    with pytest.raises(Exception, match="restartPolice"):
        check_job(job)


def test_what_another_cluster_offered_does_not_stay(project: Path) -> None:
    assert "a40.yaml" in {path.name for path in prepared(project).iterdir()}
    assert "a40.yaml" not in {path.name for path in prepared(project, cluster="gke").iterdir()}


def test_a_volume_and_shared_meters_take_the_place_of_what_goes_with_the_pod(project: Path) -> None:
    folder = prepared(project, "--claim", "weights", "--share-meters", "--namespace", "ml")
    job = built(folder / "h100.yaml")
    check_job(job)
    volumes = {volume.pop("name"): volume for volume in job["spec"]["template"]["spec"]["volumes"]}
    assert volumes["runs"] == {"persistentVolumeClaim": {"claimName": "weights"}}
    assert volumes["shm"]["hostPath"]["path"] == "/dev/shm"
    assert job["metadata"]["namespace"] == "ml"


def test_the_project_in_an_image_has_the_same_entry_points(project: Path) -> None:
    load_project = library("mlflow.projects.utils").load_project
    made = load_project(prepared(project))
    ours = load_project(ROOT)
    assert made.docker_env == {"image": IMAGE}
    assert made.name == ours.name
    for name in MLPROJECT["entry_points"]:
        theirs, mine = made.get_entry_point(name), ours.get_entry_point(name)
        assert (theirs.command, vars(theirs)["parameters"].keys()) == (
            mine.command,
            mine.parameters.keys(),
        )
        defaults = {key: parameter.default for key, parameter in mine.parameters.items()}
        assert {key: parameter.default for key, parameter in theirs.parameters.items()} == defaults


def test_workers_are_one_indexed_job_with_a_study_and_no_run_of_mlflows(project: Path) -> None:
    prepared(project)
    done = script(project, "kubernetes/workers", "t4", "8", "-P", "study=QA on T4", "-P", "task=qa")
    job = yaml.safe_load(done.stdout)
    check_job(job)
    spec, container = job["spec"], job["spec"]["template"]["spec"]["containers"][0]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 8, 8)
    assert "backoffLimit" not in spec  # of all workers together, it would end them all
    assert container["image"] == IMAGE
    assert container["command"] == ["python", "-m", "entrypoints.sweep", "--gpu", "t4",
                                    "--study", "QA on T4", "--task", "qa"]  # fmt: skip
    assert "env" not in container
    assert job["metadata"]["generateName"] == "green-tune-qa-on-t4-"


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("kubernetes/prepare", "--cluster gke --image green-tune", "give REGISTRY/NAME:TAG"),
        ("kubernetes/prepare", "--cluster gke --image r/g:", "give REGISTRY/NAME:TAG"),
        ("kubernetes/prepare", "--cluster gke --image r/g@sha256:ab", "give REGISTRY/NAME:TAG"),
        ("kubernetes/prepare", "--cluster gke --image r/g:1 --claim Mine", "Kubernetes takes"),
        ("kubernetes/workers", "t4 2 -P study=a -P gpu=l4", "nodes that have a t4"),
        ("skypilot/launch", "-P gpu=v100 -P study=a", "gpu=v100 is not offered there"),
        ("skypilot/launch", "-P gpu=t4 -P study=a --env-file nowhere", "nowhere is no file"),
        ("kubernetes/workers", "t4 2 -P task=qa", "give the study"),
        ("kubernetes/workers", "t4 2 -P study=a -P taks=qa", "-P taks=qa is no option"),
        ("kubernetes/workers", "t4 2 -P study=", "give each option as -P NAME=VALUE"),
        ("kubernetes/workers", "t5 2 -P study=a", "has no Job for t5; those that are: a10"),
        ("skypilot/launch", "-P study=a", "give -P gpu=NAME"),
        ("skypilot/launch", "-P gpu=t4", "give -P study=NAME"),
        ("skypilot/launch", "-P gpu=h100-pcie -P study=a", "gpu=h100-pcie is not offered there"),
        ("skypilot/launch", "--aws -P gpu=a40 -P study=a", "gpu=a40 is not offered there"),
        ("skypilot/launch", "-P gpu=t4 -P taks=qa -P study=a", "-P taks is no option"),
    ],
)
def test_what_is_wrong_is_one_line(name: str, arguments: str, why: str, project: Path) -> None:
    if name == "kubernetes/workers":
        prepared(project)
    done = script(project, name, *arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


class FakeDaemon:
    """Stands for Docker: has one image, and a registry that takes it."""

    tags = (IMAGE,)
    id = "sha256:" + "0" * 64

    def __init__(self) -> None:
        self.images = self

    def list(self, name: str) -> "Sequence[FakeDaemon]":
        return [self]

    def get(self, name: str) -> "FakeDaemon":
        assert name in self.tags
        return self

    def push(self, repository: str, **_: object) -> Sequence[object]:
        assert repository in self.tags
        return []

    def get_registry_data(self, name: str) -> "FakeDaemon":
        return self


class FakeCluster:
    """Stands for a cluster: checks a Job as its API would, then runs its command as a process."""

    def __init__(self, secret: dict[str, str]) -> None:
        self.secret = secret
        self.jobs: list[dict[str, Any]] = []
        self.code = -1

    def create_namespaced_job(self, namespace: str, body: dict[str, Any], **_: object) -> None:
        check_job(body)
        assert body["metadata"]["namespace"] == namespace
        self.jobs.append(body)
        container = body["spec"]["template"]["spec"]["containers"][0]
        folder = Path("pod")
        folder.mkdir()
        node = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        image = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
        env = {entry["name"]: entry["value"] for entry in container["env"]}
        self.code = subprocess.run(
            container["command"], cwd=folder, env=node | image | self.secret | env, check=False
        ).returncode

    def read_namespaced_job_status(self, **_: object) -> Any:
        client = library("kubernetes.client")
        kind = "Complete" if self.code == 0 else "Failed"
        condition = client.V1JobCondition(status="True", type=kind)
        status = client.V1JobStatus(conditions=[condition])
        return client.V1Job(status=status)


@pytest.mark.e2e
def test_mlflow_run_on_kubernetes_leaves_a_sweep_in_the_store_and_no_secret_in_the_job(
    project: Path, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    projects, images = library("mlflow.projects"), library("mlflow.projects.docker")
    backend = library("mlflow.projects.kubernetes")
    folder = prepared(project)
    cluster = FakeCluster({"MLFLOW_TRACKING_PASSWORD": "hunter2"})
    monkeypatch.setattr(images.docker, "from_env", lambda **_: FakeDaemon())
    monkeypatch.setattr(images, "validate_docker_installation", lambda: None)
    monkeypatch.setattr(backend.kubernetes.config, "load_kube_config", lambda **_: None)
    monkeypatch.setattr(backend.kubernetes.client, "BatchV1Api", lambda: cluster)
    monkeypatch.setattr(backend.KubernetesSubmittedRun, "POLL_STATUS_INTERVAL", 0)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    monkeypatch.setenv("KUBE_MLFLOW_TRACKING_URI", store_uri)
    library("mlflow").set_tracking_uri(store_uri)  # another test may have named its own
    asked = dict(option.split("=") for option in QUICK.replace("-P ", "").split())
    submitted = projects.run(
        str(folder),
        "sweep",
        parameters=asked | {"trials": "1", "learning_rate": "1e-4..1e-3"},
        backend="kubernetes",
        backend_config=str(folder / "t4.json"),
    )
    client = MlflowClient(store_uri)
    parent = client.get_run(submitted.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["emissions_kg"] > 0
    assert parent.data.params["learning_rate"] == "1e-4..1e-3"
    (trial,) = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{submitted.run_id}'"
    )
    assert trial.data.metrics["val_loss"] > 0
    (job,) = cluster.jobs
    assert "hunter2" not in json.dumps(job)
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == f"{IMAGE}@{FakeDaemon.id}"


@pytest.mark.e2e
def test_a_machine_of_skypilots_works_at_the_study_and_its_region_is_the_country(
    project: Path, store_uri: str
) -> None:
    """The script that SkyPilot runs there, as it is; its environment is the one of these tests."""
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "bin" / "activate").touch()
    task = yaml.safe_load((project / "docker" / "skypilot" / "sweep.yaml").read_text())
    given = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "OPTIONS": f"{QUICK} -P study=sky -P trials=1 -P 'learning_rate=1e-4..1e-3'",
        "COUNTRY": "",
        "SKYPILOT_NUM_GPUS_PER_NODE": "1",
        "SKYPILOT_CLUSTER_INFO": '{"cloud": "AWS", "region": "eu-north-1"}',
    }
    done = subprocess.run(
        ["bash", "-c", task["run"]],
        cwd=project, env=os.environ | given, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(store_uri)
    found = client.search_runs(["0"])
    kinds = sorted(run.data.tags["green_tune.kind"] for run in found)
    assert kinds == ["sweep", "trial"]
    assert {run.info.status for run in found} == {"FINISHED"}
    trials = [run for run in found if run.data.tags["green_tune.kind"] == "trial"]
    assert {run.data.tags["intensity_zone"] for run in trials} == {"Sweden"}


def test_a_machine_without_a_gpu_ends_with_an_error(project: Path) -> None:
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "bin" / "activate").touch()
    task = yaml.safe_load((project / "docker" / "skypilot" / "sweep.yaml").read_text())
    given = {"SKYPILOT_NUM_GPUS_PER_NODE": "0", "OPTIONS": "-P study=a", "COUNTRY": "FRA"}
    done = subprocess.run(
        ["bash", "-c", task["run"]],
        cwd=project, env=os.environ | given, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "no GPU was given to this job\n")


def blocks(page: Path) -> list[str]:
    """The commands of a page's code blocks, each on one line, without comments."""
    found = re.findall(r"^```\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(found).replace("\\\n", " ").splitlines()
    return [stripped for line in lines if (stripped := line.partition(" #")[0].strip())]


FLAG = re.compile(r"(?<=\s)--?[a-zA-Z][\w-]*")
INLINE = re.compile("`(sky [^`]+)`")
READ = """
import json, sys
import click, sky
from sky.client.cli import command
from sky.provision.kubernetes import utils

asked = json.load(sys.stdin)
(machine,) = sky.Task.from_yaml(asked["task"]).resources
for words in asked["commands"]:
    found = command.cli
    while isinstance(found, click.Group):
        found = found.commands[words.pop(0)]
    found.make_parser(click.Context(found)).parse_args(words)
gke = {name: utils.get_gke_accelerator_name(name) for name in asked["gpus"]}
stop = machine.autostop_config
print(json.dumps([machine.accelerators, [stop.enabled, stop.idle_minutes, stop.down], gke]))
"""


def launches() -> list[list[str]]:
    """What launch.py becomes, for each GPU on any cloud and on Amazon's."""
    launch = library("importlib.util").spec_from_file_location(
        "launch", ROOT / "docker" / "skypilot" / "launch.py"
    )
    module = library("importlib.util").module_from_spec(launch)
    launch.loader.exec_module(module)
    return [
        module.command(
            {"gpu": name, "study": "a b", "country": "FRA"},
            module.machine_for(name, TABLE, aws=aws),
            spot=spot,
        )
        for name, row in TABLE.items()
        for aws in (False, True)
        for spot in (False, True)
        if "sky" in row and (not aws or "aws" in row)
    ]


@pytest.mark.e2e
def test_skypilot_reads_the_task_and_knows_every_command_of_ours(tmp_path: Path) -> None:
    """In an environment of its own, as for users: its pins and ours differ."""
    lines = [line for page in PAGES for line in [*blocks(page), *INLINE.findall(page.read_text())]]
    texts = [shlex.split(line) for line in lines if line.startswith("sky ")]
    asked = {
        "task": str(ROOT / "docker" / "skypilot" / "sweep.yaml"),
        "commands": [words[1:] for words in [*texts, *launches()]],
        "gpus": [row["sky"] for row in TABLE.values() if "sky" in row],
    }
    assert len(texts) > 10
    done = subprocess.run(
        ["uv", "run", "--quiet", "--isolated", "--no-project", "--python", sys.executable,
         "--with", SKYPILOT, "python", "-c", READ],
        input=json.dumps(asked), cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    gpus, stop, gke = json.loads(done.stdout)
    assert gpus == {"T4": 1}
    assert stop == [True, 10, True]
    assert {row["gke"] for row in TABLE.values() if "gke" in row} == {
        gke[row["sky"]] for row in TABLE.values() if "gke" in row
    }


def test_a_gpu_is_asked_for_by_skypilots_name_and_the_options_arrive_as_they_were_given(
    project: Path,
) -> None:
    asked = ["-P", "gpu=a100-40", "-P", "study=a b", "-P", "country=FRA", "--aws", "--show"]
    done = script(project, "skypilot/launch", *asked, "--", "--yes")
    words = shlex.split(done.stdout)
    assert words[:3] == ["sky", "launch", "docker/skypilot/sweep.yaml"]
    assert words[-1] == "--yes"
    given = dict(pairwise(words))
    assert (given["--gpus"], given["--instance-type"]) == ("A100:8", "p4d.24xlarge")
    envs = [value for name, value in pairwise(words) if name == "--env"]
    assert envs == ["OPTIONS=-P gpu=a100-40 -P 'study=a b'", "COUNTRY=FRA"]


@pytest.mark.parametrize("spot", [True, False])
def test_only_a_machine_that_may_be_taken_away_is_a_managed_job(spot: bool, project: Path) -> None:
    asked = ["-P", "gpu=t4", "-P", "study=a", "--show", *(["--spot"] if spot else [])]
    words = shlex.split(script(project, "skypilot/launch", *asked).stdout)
    assert (words[1] == "jobs", "--use-spot" in words) == (spot, spot)


def countries() -> dict[str, dict[str, str]]:
    done = subprocess.run(
        [sys.executable, "-c", "import country, json; "
         "print(json.dumps({'aws': country.AWS, 'gcp': country._google()}))"],
        cwd=ROOT / "docker" / "skypilot", capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


def test_every_region_of_amazons_has_a_country_whose_intensity_is_known() -> None:
    endpoints = Path(library("botocore").__file__).parent / "data" / "endpoints.json"
    (amazon,) = [
        partition
        for partition in json.loads(endpoints.read_text())["partitions"]
        if partition["partition"] == "aws"
    ]
    found = countries()
    assert found["aws"].keys() == amazon["regions"].keys()
    known = {intensity.resolve(code).zone for codes in found.values() for code in codes.values()}
    assert {"Sweden", "Finland", "Japan"} <= known


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ('{"cloud": "AWS", "region": "eu-west-3"}', "FRA"),
        ('{"cloud": "GCP", "region": "europe-west9", "zone": "europe-west9-a"}', "FRA"),
        ('{"cloud": "Lambda", "region": "us-east-1"}', "world"),
        ("", "world"),
    ],
)
def test_of_a_place_that_is_not_known_the_worlds_average_is_assumed(
    info: str, expected: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYPILOT_CLUSTER_INFO", info)
    done = script(project, "skypilot/country")
    assert (done.returncode, done.stdout) == (0, f"{expected}\n")
    assert intensity.resolve(expected).assumed == (expected == "world")


def test_amazons_table_in_the_docs_is_the_one_that_is_used() -> None:
    lines = re.findall(r"^\| (`[a-z0-9-]+` \|.+) \|$", PAGES[1].read_text(), re.MULTILINE)
    rows = [[cell.strip(" `") for cell in line.split("|")] for line in lines]
    assert rows == [
        [
            name,
            row.get("sky", "not by name"),
            row.get("aws", "not offered"),
            str(row.get("aws_gpus", 1)) if "aws" in row else "",
        ]
        for name, row in TABLE.items()
        if row
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_tells_to_type_exists(page: Path, project: Path) -> None:
    text = page.read_text()
    files = {ROOT / name for name in re.findall(r"\b(?:docker|docs)/[\w./-]+\.\w+", text)}
    files |= {page.parent / name for name in re.findall(r"\]\(([\w.]+\.md)", text)}
    assert len(files) > 3
    assert [path for path in files if not path.exists()] == []
    options = {name for entry in MLPROJECT["entry_points"].values() for name in entry["parameters"]}
    assert {name for name in re.findall(r"-P (\w+)=", text)} <= options
    known: set[str] = set()
    for name in ("kubernetes/prepare", "kubernetes/workers", "skypilot/launch"):
        ours = [line.split("|")[0] for line in blocks(page) if f"docker/{name}.py" in line]
        flags = {flag for line in ours for flag in FLAG.findall(line.partition(" -- ")[0])}
        there = {*FLAG.findall(script(project, name, "--help").stdout)}
        assert flags <= there, name
        known |= there
    assert {*re.findall(r"`(?:prepare\.py )?(--[a-z][\w-]*)", text)} <= known


def test_the_environment_variables_of_the_docs_are_read_by_somebody() -> None:
    ours = "".join(path.read_text() for path in (ROOT / "green_tune").glob("*.py"))
    theirs = [library("mlflow.environment_variables"), library("huggingface_hub.constants")]
    known = ours + "".join(Path(module.__file__).read_text() for module in theirs)
    known += Path(library("mlflow.projects.kubernetes").__file__).read_text()
    text = "".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"\b(?:KUBE_)?(?:MLFLOW|GREEN_TUNE|HF)_[A-Z_]+\b", text))
    assert len(named) > 4
    assert [name for name in named if name not in known] == []
