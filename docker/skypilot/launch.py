"""Gives `-P gpu=t4` a T4: hands sweep.yaml to SkyPilot, with the GPU under SkyPilot's name.

    python docker/skypilot/launch.py -P gpu=t4 -P study=qa-t4 -P task=qa -P data=hub --spot

What follows `--` goes to `sky` as it is. Addresses, logins and tokens are read by `sky` from .env,
and by nothing here. SkyPilot lives in an environment of its own, as its pins are not ours;
docs/cloud.md has the whole way.
"""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import yaml

ROOT = Path(__file__).parents[2]
TASK = "docker/skypilot/sweep.yaml"


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("-P", "options", multiple=True, metavar="NAME=VALUE", help="As for `mlflow run`.")
@click.option(
    "--spot", is_flag=True, help="Cheaper, may be taken away; SkyPilot then starts again."
)
@click.option("--aws", is_flag=True, help="On AWS, on the instance type of docker/gpus.yaml.")
@click.option("--env-file", default=".env", show_default=True, help="With addresses and tokens.")
@click.option("--show", is_flag=True, help="Prints the command of `sky`, and runs nothing.")
@click.argument("further", nargs=-1, type=click.UNPROCESSED)
def launch(**asked: Any) -> None:
    """Becomes `sky`, in the repository's folder, which SkyPilot copies to the machine."""
    known = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]["sweep"]["parameters"]
    table = yaml.safe_load((ROOT / "docker" / "gpus.yaml").read_text())
    try:
        options = read(asked["options"], known)
        machine = machine_for(options["gpu"], table, aws=asked["aws"])
    except ValueError as error:
        _refuse(str(error))
    if not (asked["show"] or Path(asked["env_file"]).is_file()):
        _refuse(f"--env-file {asked['env_file']} is no file; docs/cloud.md says what is in it")
    secrets = ["--secret-file", str(Path(asked["env_file"]).absolute())]
    sky = command(options, [*machine, *secrets, *asked["further"]], spot=asked["spot"])
    click.echo(shlex.join(sky), err=not asked["show"])
    if not asked["show"]:
        os.chdir(ROOT)
        try:
            os.execvp(sky[0], sky)
        except FileNotFoundError:
            _refuse("there is no `sky` here; docs/cloud.md says how to get it")


def _refuse(why: str) -> NoReturn:
    click.echo(f"error: {why}", err=True)
    sys.exit(2)


def read(options: Sequence[str], known: Mapping[str, Any]) -> dict[str, str]:
    """The options by name.

    Raises:
        ValueError: one is unknown or has no value, or GPU or study is missing: without a name, a
            machine that follows another would begin a study of its own.
    """
    asked = {name: value for name, _, value in (option.partition("=") for option in options)}
    if wrong := [name for name in asked if name not in known]:
        raise ValueError(f"-P {wrong[0]} is no option; known: {', '.join(known)}")
    if not all(asked.values()):
        raise ValueError("give each option as -P NAME=VALUE")
    if missing := [name for name in ("gpu", "study") if name not in asked]:
        raise ValueError(f"give -P {missing[0]}=NAME")
    return asked


def machine_for(gpu: str, table: Mapping[str, Any], *, aws: bool) -> list[str]:
    """The options of `sky` for a machine with this GPU; on AWS with as many as come together.

    Raises:
        ValueError: the GPU is unknown, or is not offered there.
    """
    where = "aws" if aws else "sky"
    there = [name for name, row in table.items() if "sky" in row and where in row]
    if gpu not in there:
        raise ValueError(f"-P gpu={gpu} is not offered there; those that are: {', '.join(there)}")
    row = table[gpu]
    if not aws:
        return ["--gpus", f"{row['sky']}:1"]
    count = row.get("aws_gpus", 1)
    return ["--infra", "aws", "--instance-type", row["aws"], "--gpus", f"{row['sky']}:{count}"]


def command(options: Mapping[str, str], further: Sequence[str], *, spot: bool) -> list[str]:
    """A managed job where machines may be taken away, else a machine of its own."""
    texts = [f"-P {shlex.quote(f'{name}={text}')}" for name, text in options.items()
             if name != "country"]  # fmt: skip
    envs = ["--env", f"OPTIONS={' '.join(texts)}", "--env", f"COUNTRY={options.get('country', '')}"]
    start = ["sky", "jobs", "launch", TASK, "--use-spot"] if spot else ["sky", "launch", TASK]
    return [*start, "--name", "green-tune", *envs, *further] if spot else [*start, *envs, *further]


if __name__ == "__main__":
    launch()
