"""`mlflow run . -e predict`: what an adapter makes of a text, or of a file of them."""

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from entrypoints.options import options_of, run
from green_tune.config import Options, option
from green_tune.errors import ConfigError, DataError

NONE = "-"
PREDICTION = "prediction"


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Options):
    """Which adapter, and what of."""

    adapter: str = option(
        NONE, "Run id, registered NAME, NAME@ALIAS or NAME/VERSION, or a folder; needed."
    )
    text: str = option(NONE, "One input: a text, or a JSON object with the fields of the task.")
    input: str = option(NONE, "File of inputs: .jsonl, .csv, or a text in each line.")
    output: str = option(NONE, "File for the predictions, as JSON lines; - prints them.")
    gpu: str = option("auto", "auto, cpu, or a GPU of the table, such as t4, l4, a100.")


@click.command(help="Predict with an adapter: one text, or a file of them.")
@options_of(PredictConfig)
def predict(**asked: str) -> None:
    """Checks what was asked, and only then imports what is heavy."""
    run(lambda: _predict(asked))


def _predict(asked: dict[str, str]) -> None:
    config = PredictConfig.parse(asked)
    if config.adapter == NONE:
        raise ConfigError("adapter= is needed: a run id, a registered name, or a folder")
    if (config.text == NONE) == (config.input == NONE):
        raise ConfigError("one of text= and input= is needed")
    inputs = [_one(config.text)] if config.input == NONE else list(_read(Path(config.input)))
    if not inputs:
        raise DataError(f"input={config.input} is empty")
    _check_writable(config.output)

    from green_tune import job, store

    device = job.device(config.gpu)
    store.check_reachable(store.tracking_uri())

    from green_tune import adapters
    from green_tune.registry import Registry
    from green_tune.tracking import Tracker

    with Tracker(store.tracking_uri()).adopted("predict", "predict", asked):
        registry = Registry(store.tracking_uri())
        named = adapters.find(config.adapter, registry)
        with TemporaryDirectory(prefix="green-tune-predict-") as scratch:
            folder = adapters.bring(named, registry, Path(scratch))
            texts = _predictions(folder, inputs, "cuda" if device.uuid else "cpu")
    _write(inputs, texts, config)


def _one(text: str) -> Any:
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read(path: Path) -> Iterator[Any]:
    """The inputs of a file, by its ending."""
    from green_tune import data

    if path.suffix == ".jsonl":
        yield from (row for _, row in data.read_lines(path))
        return
    try:
        with path.expanduser().open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                yield from _csv_rows(path, file)
            else:
                yield from (line.rstrip("\r\n") for line in file if line.strip())
    except (OSError, UnicodeDecodeError, RuntimeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"input={path} cannot be read: {why}") from None


def _csv_rows(path: Path, lines: Any) -> Iterator[Any]:
    reader = csv.DictReader(lines)
    for row in reader:
        if None in row:
            raise DataError(f"{path}:{reader.line_num}: more cells than the first line has names")
        yield row


def _predictions(folder: Path, inputs: list[Any], device: str) -> list[str]:
    from green_tune import adapters, bars, parcel, stop
    from green_tune.predictor import Predictor, rows

    recipe = parcel.check_recipe(folder)
    with adapters.problems_named():
        rows(inputs, recipe["fields"])  # a mistake in a row is said before a model is loaded
        predictor = Predictor(folder, device=device)
        with bars.bar("predict", total=len(inputs)) as bar:

            def done(count: int) -> None:
                stop.check()
                bar.update(count)

            return predictor.predict(inputs, on_done=done)


def _write(inputs: list[Any], texts: list[str], config: PredictConfig) -> None:
    """One text's prediction as it is; of a file, each row with its prediction."""
    if config.input == NONE and config.output == NONE:
        click.echo(texts[0])
        return
    rows = (
        {**(row if isinstance(row, Mapping) else {"input": row}), PREDICTION: text}
        for row, text in zip(inputs, texts, strict=True)
    )
    try:
        with _opened(config.output) as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    except BrokenPipeError:  # the reader has enough, such as `head`; click ends quietly
        raise
    except OSError as error:
        raise _not_written(config.output, error) from None
    if config.output != NONE:
        click.echo(f"{len(texts)} predictions: {config.output}")


def _check_writable(output: str) -> None:
    """Before the work; what is in the file stays there until the predictions are."""
    if output == NONE:
        return
    try:
        path = Path(output).expanduser()
        is_new = not path.exists()
        path.open("a").close()
        if is_new:
            path.unlink()
    except (OSError, RuntimeError) as error:  # the latter of ~somebody who is not here
        raise _not_written(output, error) from None


def _not_written(output: str, error: Exception) -> ConfigError:
    why = getattr(error, "strerror", None) or error
    return ConfigError(f"output={output} cannot be written: {why}")


@contextmanager
def _opened(output: str) -> Iterator[Any]:
    if output == NONE:
        yield sys.stdout
        sys.stdout.flush()
        return
    with Path(output).expanduser().open("w", encoding="utf-8") as file:
        yield file


if __name__ == "__main__":
    predict()
