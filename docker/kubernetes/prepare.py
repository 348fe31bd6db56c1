"""Writes what `mlflow run --backend kubernetes` reads: a project, and a Job for each kind of GPU.

    python docker/kubernetes/prepare.py --cluster gke --image REGISTRY/green-tune:1

The project is the repository's MLproject with the image in place of conda.yaml, as MLflow takes one
environment for a project; the Jobs are job.yaml on the nodes that gpus.yaml names. So neither is
written twice. No cluster, registry or secret is asked or named; docs/cluster.md has the whole way.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "kubernetes"
# The label that says which GPU a node has: Google's, the instance type (Amazon's), or that of
# NVIDIA's GPU operator, which any cluster may have.
LABELS = {
    "gke": "cloud.google.com/gke-accelerator",
    "eks": "node.kubernetes.io/instance-type",
    "nvidia": "nvidia.com/gpu.product",
}
MEMORY = (
    "10Gi"  # of a pod: T4s, L4s and A10Gs come in machines of 16 GiB, and the system takes some
)


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where the Jobs go: what differs between two clusters, not between two GPUs."""

    cluster: str  # of LABELS
    namespace: str = "default"
    claim: str = ""  # of the volume that keeps weights and checkpoints; empty: gone with the pod
    share_meters: bool = False


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option(
    "--cluster", type=click.Choice(list(LABELS)), required=True, help="How nodes are labelled."
)
@click.option("--image", required=True, help="The image in your registry, with its tag.")
@click.option("--context", default="", help="Of your kubeconfig; the current one without it.")
@click.option(
    "--namespace", default="default", show_default=True, help="Of the Jobs and the Secret."
)
@click.option("--claim", default="", help="A PersistentVolumeClaim for weights and checkpoints.")
@click.option("--share-meters", is_flag=True, help="For nodes on which several pods run at once.")
def prepare(**asked: Any) -> None:
    """Writes the project, and a template and a backend config for each GPU."""
    image, context = asked.pop("image"), asked.pop("context")
    site = Site(**asked)
    if not re.fullmatch(r"[^@\s]+/[^@:/\s]+:[\w.-]+", image):
        _refuse(f"--image {image}: give REGISTRY/NAME:TAG, as nodes pull it")
    for name, text in (("namespace", site.namespace), ("claim", site.claim)):
        if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", text or "none"):
            _refuse(f"--{name} {text}: Kubernetes takes lower-case letters, digits and dashes")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in [*FOLDER.glob("*.yaml"), *FOLDER.glob("*.json")]:
        old.unlink()  # of a cluster that offered more
    _write(FOLDER / "MLproject", project(image))
    for gpu, row in gpus().items():
        if values := node_labels(row, site.cluster):
            _write(FOLDER / f"{gpu}.yaml", job(row, values, site))
            config = backend_config(FOLDER / f"{gpu}.yaml", image, context)
            (FOLDER / f"{gpu}.json").write_text(json.dumps(config, indent=2) + "\n")
            click.echo(f"{FOLDER.relative_to(ROOT)}/{gpu}.json: {', '.join(values)}")


def gpus() -> dict[str, dict[str, Any]]:
    """The table gpus.yaml by the names of hardware.GPUS."""
    table: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker" / "gpus.yaml").read_text())
    return table


def project(image: str) -> dict[str, Any]:
    """The repository's MLproject, to be run in an image."""
    ours = yaml.safe_load((ROOT / "MLproject").read_text())
    return {
        "name": ours["name"],
        "docker_env": {"image": image},
        "entry_points": ours["entry_points"],
    }


def backend_config(template: Path, image: str, context: str) -> dict[str, str]:
    """What MLflow's option --backend-config reads."""
    name, _, _ = image.rpartition(":")
    config = {"kube-job-template-path": str(template), "repository-uri": name}
    return config | ({"kube-context": context} if context else {})


def node_labels(row: Mapping[str, Any], cluster: str) -> Sequence[str]:
    """The values that a node with this GPU has in the cluster's label; none: not offered there."""
    found = row.get({"eks": "aws"}.get(cluster, cluster), [])
    return [found] if isinstance(found, str) else found


def job(row: Mapping[str, Any], values: Sequence[str], site: Site) -> dict[str, Any]:
    """job.yaml for one kind of GPU at a site."""
    made: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "kubernetes" / "job.yaml").read_text())
    made["metadata"]["namespace"] = site.namespace
    pod = made["spec"]["template"]["spec"]
    pod |= _on_nodes(LABELS[site.cluster], values)
    pod["containers"][0]["resources"]["requests"]["memory"] = row.get("memory", MEMORY)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    if site.claim:
        volumes["runs"] = {"name": "runs", "persistentVolumeClaim": {"claimName": site.claim}}
    if site.share_meters:  # the node's own, where meters find each other and share its energy
        volumes["shm"] = {"name": "shm", "hostPath": {"path": "/dev/shm", "type": "Directory"}}
    pod["volumes"] = list(volumes.values())
    return made


def _on_nodes(label: str, values: Sequence[str]) -> dict[str, Any]:
    """Some autoscalers understand a selector only, and a selector takes one value."""
    if len(values) == 1:
        return {"nodeSelector": {label: values[0]}}
    terms = [{"matchExpressions": [{"key": label, "operator": "In", "values": list(values)}]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"affinity": {"nodeAffinity": required}}


def _refuse(why: str) -> NoReturn:
    click.echo(f"error: {why}", err=True)
    sys.exit(2)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(value), sort_keys=False))


if __name__ == "__main__":
    prepare()
