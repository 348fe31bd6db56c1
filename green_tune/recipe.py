"""A recipe: what an adapter needs besides its weights to be used again.

How an input becomes a prompt, what may come of it, and which base model it sits on. It lies beside
the weights as `recipe.json`, and `predictor` reads it, with or without green-tune.
"""

import json
from pathlib import Path
from typing import Any

from green_tune import predictor, tiny
from green_tune.job import Job
from green_tune.models import Source

NAME, FORMAT = "recipe.json", 1


def of(job: Job) -> dict[str, Any]:
    """The recipe of a job's adapter."""
    task, source = job.task, job.source
    return {
        "format": FORMAT,
        "task": task.name,
        "fields": list(task.fields[:-1]),
        "template": list(task.template),
        "quality": task.quality,
        "labels": list(job.data.labels),
        "max_new_tokens": task.max_new_tokens,
        "max_seq_len": job.config.max_seq_len,
        "precision": job.plan.precision,
        "base": {
            "name": source.name,
            "kind": source.kind,
            "place": str(folder_of(source) or source.place),
            "revision": job.commit,
            "digest": base_digest(job),
        },
    }


def write(recipe: dict[str, Any], folder: Path) -> None:
    """Writes it beside an adapter's weights."""
    text = json.dumps(recipe, indent=2, ensure_ascii=False) + "\n"
    (folder / NAME).write_text(text, encoding="utf-8")


def folder_of(source: Source) -> Path | None:
    """The folder that a base model is in, built there if need be; None for one of the hub."""
    if source.kind == "hub":
        return None
    return tiny.folder(source.place) if source.kind == "built" else Path(source.place)


def base_digest(job: Job) -> str:
    """What identifies a base model in a folder; empty for one of the hub, which has a commit."""
    folder = folder_of(job.source)
    return predictor.digest(folder) if folder else ""
