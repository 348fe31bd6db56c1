"""The command `compare`: where a report goes, and what a user can get wrong, in one line."""

import random
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from synthetic import Effects, run
from test_selection import measured, tagged
from written import write

from entrypoints.compare import compare
from green_tune.results import RunRecord

ALONE = run(random.Random(0), Effects())


def compared(*options: str) -> Result:
    return CliRunner().invoke(compare, options)


def kinds(uri: str) -> dict[str, str]:
    """The status of each kind of run."""
    found = MlflowClient(uri).search_runs(["0"])
    return {each.data.tags["green_tune.kind"]: each.info.status for each in found}


def error(done: Result) -> str:
    """The one line on the screen of a command that was refused."""
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    return line


def test_a_report_is_in_its_run_and_in_a_folder_that_stays_as_it_was(store_uri: str) -> None:
    write([ALONE], store_uri)
    folder = Path("report")
    folder.mkdir(mode=0o755)
    (folder / "mine.txt").write_text("mine")
    before = folder.stat().st_mode
    done = compared("--output", str(folder))
    assert done.exit_code == 0, done.output
    assert "report: report/report.html" in done.stdout
    assert folder.stat().st_mode == before
    assert {"mine.txt", "report.html", "report.md", "tables"} <= {p.name for p in folder.iterdir()}
    assert kinds(store_uri) == {"train": "FINISHED", "compare": "FINISHED"}


def test_a_report_that_cannot_be_copied_is_still_in_its_run(store_uri: str) -> None:
    write([ALONE], store_uri)
    Path("report/report.html").mkdir(parents=True)
    done = compared("--output", "report")
    assert done.exit_code == 0, done.output
    assert "report: report/report.html" not in done.stdout
    assert kinds(store_uri)["compare"] == "FINISHED"


@pytest.mark.parametrize("output", ["taken", "taken/below", "~nobody-of-this-name/report", "/proc"])
def test_a_place_that_takes_no_report_is_said_before_one_is_made(
    store_uri: str, output: str
) -> None:
    write([ALONE], store_uri)
    Path("taken").write_text("")
    assert f"output={output} is no folder for a report" in error(compared("--output", output))
    assert kinds(store_uri) == {"train": "FINISHED"}


@pytest.mark.parametrize("form", ["table", "csv", "json"])
@pytest.mark.parametrize(
    "record",
    [
        tagged(ALONE, intensity_g_per_kwh="about 475"),
        tagged(ALONE, pue="none"),
        measured(ALONE, runtime_h=float("nan")),
    ],
)
def test_what_anybody_has_written_into_a_run_is_no_crash(
    store_uri: str, record: RunRecord, form: str
) -> None:
    write([record], store_uri)
    done = compared("--format", form, "--country", "FRA")
    assert (done.exit_code, done.stderr) == (0, "")


def test_a_typo_is_answered_with_what_the_results_have(store_uri: str) -> None:
    client = MlflowClient(store_uri)
    write([ALONE], store_uri)
    report = client.create_run("0", tags={"green_tune.kind": "sweep", "base_model": "gemma-2b"})
    client.set_terminated(report.info.run_id)
    assert error(compared("--model", "gema-2b")) == (
        "error: no run has model=gema-2b: the store has gemma-2b (1); did you mean gemma-2b?"
    )


def test_the_launchers_run_matches_no_filter_by_the_parameters_that_it_logs(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(store_uri)
    write([ALONE], store_uri)
    launched = client.create_run("0").info.run_id
    client.log_param(launched, "task", "qq")
    monkeypatch.setenv("MLFLOW_RUN_ID", launched)
    assert error(compared("--task", "qq")) == "error: no run has task=qq: the store has qa (1)"
