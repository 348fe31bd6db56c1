"""Which runs to read back, as MLflow's own filter strings. It knows no store."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from green_tune.errors import ConfigError
from green_tune.results import FINGERPRINT, FRONT, KIND, STUDY

KINDS = ("train", "cell", "trial", "repeat")  # compared; others hold sums


@dataclass(frozen=True, kw_only=True)
class Query:
    """Which runs to read back; an empty field selects all. Times are in UTC."""

    model: str = ""
    task: str = ""
    gpu: str = ""
    study: str = ""
    fingerprint: str = ""
    front: bool = False  # only those that were on the front of their study
    since: datetime | None = None
    until: datetime | None = None
    kinds: Sequence[str] = KINDS

    def filters(self) -> list[str]:
        """MLflow filter strings that select these runs together: its grammar knows no OR."""
        equal = {
            "tags.base_model": self.model,
            "params.task": self.task,
            f"tags.`{STUDY}`": self.study,
            f"tags.`{FINGERPRINT}`": self.fingerprint,
            f"tags.`{FRONT}`": "true" if self.front else "",
        }
        terms = [f"{key} = {_quoted(text)}" for key, text in equal.items() if text]
        for sign, moment in ((">=", self.since), ("<", self.until)):
            if moment:
                terms.append(f"attributes.start_time {sign} {int(moment.timestamp() * 1000)}")
        return [
            " AND ".join([f"tags.`{KIND}` = '{kind}'", *device, *terms])
            for kind in self.kinds
            for device in self._devices()
        ]

    def _devices(self) -> list[list[str]]:
        """The GPU itself, and the variants of its family: a100 finds a100-40."""
        if not self.gpu:
            return [[]]
        gpu = self.gpu.lower()
        return [
            [f"tags.gpu_type = {_quoted(gpu)}"],
            [f"tags.gpu_type LIKE {_quoted(gpu + '-%')}"],
        ]


def _quoted(text: str) -> str:
    if "'" not in text:
        return f"'{text}'"
    if '"' in text:
        raise ConfigError(f"a name with both kinds of quotation marks cannot be searched: {text}")
    return f'"{text}"'
