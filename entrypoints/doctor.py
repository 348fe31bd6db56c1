"""`mlflow run . -e doctor`: what is here, and what would go wrong, each with its fix."""

import json
import logging
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from entrypoints.options import launchers_run, options_of, run
from green_tune.config import DoctorConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from green_tune.checkup import Finding

log = logging.getLogger(__name__)


@click.command(
    help="Look at this machine, its libraries and its services, and say what would go wrong. "
    "Exit code 0: all well, or worth knowing; 1: something is wrong; 2: bad input."
)
@options_of(DoctorConfig)
def doctor(**asked: str) -> None:
    """Checks what was asked, and only then imports what is heavy."""
    run(lambda: _doctor(asked))


def _bare(command: click.Command, name: str) -> None:
    """Lets a yes-or-no option be given without its value, as `--json`."""
    whole = next(each for each in command.params if each.name == name)
    assert isinstance(whole, click.Option)
    command.params[command.params.index(whole)] = click.Option(
        [*whole.opts, name],
        is_flag=False,
        flag_value="true",
        default=whole.default,
        help=whole.help,
        show_default=True,
    )


_bare(doctor, "json")


def _doctor(asked: dict[str, str]) -> None:
    config = DoctorConfig.parse(asked)
    _check(config)

    from green_tune import checkup
    from green_tune import doctor as looks

    found = looks.look(config)
    if config.json:
        click.echo(json.dumps(checkup.to_json(found), indent=2, ensure_ascii=False))
    else:
        click.echo(checkup.screen(found))
    _leave(found, asked)
    if not checkup.all_well(found):
        sys.exit(1)


def _check(config: DoctorConfig) -> None:
    """Raises ConfigError for a GPU or a country that nobody knows."""
    from green_tune import hardware

    hardware.check_known(config.gpu)
    if find_spec("pycountry") and find_spec("codecarbon"):  # else that is a line of the screen
        from green_tune import intensity

        intensity.resolve(config.country)


def _leave(found: "Sequence[Finding]", asked: dict[str, str]) -> None:
    """Leaves what was found in the launcher's run; without the launcher, nothing is left."""
    if not launchers_run():
        return
    from green_tune import checkup, store
    from green_tune.errors import StoreError
    from green_tune.tracking import NOTE, Tracker

    try:
        tracker = Tracker(store.tracking_uri())
        with tracker.run("doctor", "doctor", asked=asked) as current:
            current.set_tags({NOTE: checkup.summary(found)})
            current.log_text(checkup.screen(found, width=100) + "\n", "doctor.txt")
            current.log_text(json.dumps(checkup.to_json(found), indent=2), "doctor.json")
    except StoreError as error:
        log.warning("what was found is not in the launcher's run: %s", error)


if __name__ == "__main__":
    doctor()
