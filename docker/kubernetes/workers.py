"""Prints one Kubernetes Job of several workers of one study, or of one grid, for `kubectl create`.

    python docker/kubernetes/workers.py t4 8 -P study=qa-t4 -P task=qa | kubectl create -f -

`mlflow run` makes one run for its Job, and workers must not share one: these make their own, under
the study's. A worker whose node is taken away starts again; one whose options are wrong does not.
The Job is the one that prepare.py has written for this GPU; docs/cluster.md has the whole way.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

FOLDER = Path(__file__).parents[2] / "build" / "kubernetes"
USAGE = 2  # the exit code of what only the user can mend
ATTEMPTS = 3
LONGEST = 40  # characters of a study in a name that Kubernetes makes longer, to 63 at the most


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("gpu")
@click.argument("workers", type=click.IntRange(min=1))
@click.option("-P", "options", multiple=True, metavar="NAME=VALUE", help="As for `mlflow run`.")
@click.option("-e", "entry", type=click.Choice(["sweep", "grid"]), default="sweep")
def main(gpu: str, workers: int, options: Sequence[str], entry: str) -> None:
    """Reads what prepare.py has written, and prints the Job."""
    try:
        template = yaml.safe_load((FOLDER / f"{gpu}.yaml").read_text())
        project = yaml.safe_load((FOLDER / "MLproject").read_text())
        asked = read(options, project["entry_points"][entry]["parameters"])
    except FileNotFoundError:
        there = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
        offered = f"those that are: {there}" if there else "run docker/kubernetes/prepare.py"
        _refuse(f"{FOLDER.name} has no Job for {gpu}; {offered}")
    except ValueError as error:
        _refuse(str(error))
    asked = {"gpu": gpu} | asked
    if asked["gpu"] != gpu:
        _refuse(f"-P gpu={asked['gpu']} would train on nodes that have a {gpu}: leave it out")
    made = job(template, project["docker_env"]["image"], command(entry, asked), workers)
    name = re.sub("[^a-z0-9]+", "-", asked["study"].lower())[:LONGEST].strip("-")
    made["metadata"]["generateName"] = f"green-tune-{name}-"
    made["metadata"]["labels"]["app.kubernetes.io/instance"] = name
    click.echo(yaml.safe_dump(made, sort_keys=False), nl=False)


def read(options: Sequence[str], known: Mapping[str, Any]) -> dict[str, str]:
    """The options by name.

    Raises:
        ValueError: one is unknown or has no value, or the study has no name: each worker would
            begin one of its own.
    """
    asked = {name: value for name, _, value in (option.partition("=") for option in options)}
    if wrong := [option for option in options if option.partition("=")[0] not in known]:
        raise ValueError(f"-P {wrong[0]} is no option; known: {', '.join(known)}")
    if not all(asked.values()):
        raise ValueError("give each option as -P NAME=VALUE")
    if "study" not in asked:
        raise ValueError("give the study that they work at: -P study=NAME")
    return asked


def command(entry: str, asked: Mapping[str, str]) -> list[str]:
    """The entry point without MLflow's launcher, which would make one run for all of them."""
    options = [text for name, value in asked.items() for text in (f"--{name}", value)]
    return ["python", "-m", f"entrypoints.{entry}", *options]


def job(
    template: Mapping[str, Any], image: str, command: Sequence[str], workers: int
) -> dict[str, Any]:
    """The template as an Indexed Job: each worker ends, fails and starts again by itself."""
    spec = {k: v for k, v in template["spec"].items() if k != "backoffLimit"}
    spec |= {
        "completionMode": "Indexed",
        "completions": workers,
        "parallelism": workers,
        "backoffLimitPerIndex": ATTEMPTS - 1,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "Ignore",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
                {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [USAGE]}},
            ]
        },
    }
    container = spec["template"]["spec"]["containers"][0]
    container |= {"image": image, "command": list(command)}
    return {**template, "spec": spec}


def _refuse(why: str) -> None:
    click.echo(f"error: {why}", err=True)
    sys.exit(USAGE)


if __name__ == "__main__":
    main()
