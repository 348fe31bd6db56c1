"""Which runs to read back, as MLflow's own filter strings; and which filter left none.

It knows no store: `emptied` is given the means to read one.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from itertools import combinations

from green_tune.errors import ConfigError
from green_tune.results import FINGERPRINT, FRONT, KIND, STUDY, RunRecord

KINDS = ("train", "cell", "trial", "repeat")  # compared; others hold sums
RESULTS = (*KINDS, "")  # and the runs of other tools, which have none
EVERY: Sequence[str] = ()  # all of ours, and the runs of other tools
EXPERIMENT = "mlflow.experimentId"  # of a record that was found: where it is
SHOWN = 12  # values that a line names


@dataclass(frozen=True, kw_only=True)
class Query:
    """Which runs to read back; an empty field selects all. Times are in UTC.

    `filter` is a user's own, in MLflow's grammar, and narrows what the others select.
    """

    model: str = ""
    task: str = ""
    gpu: str = ""
    study: str = ""
    parts: bool = False  # of the study: also the studies named study/..., such as a grid's sweeps
    fingerprint: str = ""
    front: bool = False  # only those that were on the front of their study
    since: datetime | None = None
    until: datetime | None = None
    filter: str = ""
    kinds: Sequence[str] = KINDS
    newest: int = 0  # of them, by their start; 0 for all

    def filters(self) -> list[str]:
        """MLflow filter strings that together select these runs, and no run twice.

        Its grammar knows no OR, so they may select a few more; `takes` says which ones to keep.
        """
        equal = {
            "tags.base_model": self.model,
            "params.task": self.task,
            f"tags.`{FINGERPRINT}`": self.fingerprint,
            f"tags.`{FRONT}`": "true" if self.front else "",
        }
        terms = [f"{key} = {_quoted(text)}" for key, text in equal.items() if text]
        for sign, moment in ((">=", self.since), ("<", self.until)):
            if moment:
                terms.append(f"attributes.start_time {sign} {int(moment.timestamp() * 1000)}")
        terms += [self.filter] if self.filter.strip() else []
        return [
            " AND ".join([*self._kind(), *device, *study, *terms])
            for device in _family("tags.gpu_type", self.gpu.lower(), "-")
            for study in _family(f"tags.`{STUDY}`", self.study, "/")[: 1 + self.parts]
        ]

    def takes(self, record: RunRecord) -> bool:
        """Whether a run that was found is meant: wildcards and kinds find more than was asked."""
        return (
            (not self.kinds or record.kind in self.kinds)
            and _is_of(self.gpu.lower(), "-", record.tags.get("gpu_type", ""))
            and (not self.parts or _is_of(self.study, "/", record.tags.get(STUDY, "")))
        )

    def _kind(self) -> list[str]:
        """One kind by its name; of several, any: one search instead of one for each."""
        if not self.kinds or "" in self.kinds:
            return []
        one = f"= {_quoted(self.kinds[0])}" if len(self.kinds) == 1 else "LIKE '%'"
        return [f"tags.`{KIND}` {one}"]


def emptied(find: Callable[[Query], Sequence[RunRecord]], query: Query) -> str:
    """Why a query found nothing, in one line: the filter that no run passes, and what there is.

    Reads all runs once through `find`. Empty where there are runs that pass all filters.
    """
    everything = find(Query(kinds=query.kinds))
    if not everything:
        return "the store holds no runs to compare"
    passed = dict(_passed(everything, query, find))
    for name, ids in passed.items():
        if not ids:
            return _nobody(name, query, everything)
    for count in range(2, len(passed) + 1):
        for names in combinations(passed, count):
            if not frozenset.intersection(*(passed[name] for name in names)):
                return _apart({name: len(passed[name]) for name in names}, query)
    return ""


def _passed(
    everything: Sequence[RunRecord], query: Query, find: Callable[[Query], Sequence[RunRecord]]
) -> Iterator[tuple[str, frozenset[str]]]:
    """Each filter that was given, and the runs that pass it alone."""
    for name in VALUES:
        if asked := getattr(query, name):
            parting = {"gpu": "-", "study": "/" * query.parts}.get(name, "")
            asked = asked.lower() if name == "gpu" else asked
            yield name, _ids(r for r in everything if _is_of(asked, parting, VALUES[name](r)))
    if query.front:
        yield "front", _ids(r for r in everything if r.tags.get(FRONT) == "true")
    if since := query.since:
        yield "since", _ids(r for r in everything if r.started >= since)
    if until := query.until:
        yield "until", _ids(r for r in everything if r.started < until)
    if query.filter.strip():
        yield "filter", _ids(find(Query(kinds=query.kinds, filter=query.filter)))


def _ids(records: Iterable[RunRecord]) -> frozenset[str]:
    return frozenset(record.run_id for record in records)


def _nobody(name: str, query: Query, everything: Sequence[RunRecord]) -> str:
    """A filter that no run passes, and the values that runs do have."""
    none = f"no run {'has' if name in VALUES else 'matches'} {_said(name, query)}"
    if name in ("since", "until"):
        first, last = (end(r.started for r in everything) for end in (min, max))
        return f"{none}: the runs of the store started from {_moment(first)} to {_moment(last)}"
    if name not in VALUES:
        return f"{none}, of {len(everything)} in the store"
    there = Counter(value for r in everything if (value := VALUES[name](r)))
    if not there:
        return f"{none}: none of the {len(everything)} runs in the store says its {name}"
    listed = ", ".join(f"{value} ({count})" for value, count in there.most_common(SHOWN))
    more = f" and {len(there) - SHOWN} others" if len(there) > SHOWN else ""
    near = get_close_matches(getattr(query, name), there, n=1)
    return f"{none}: the store has {listed}{more}" + (f"; did you mean {near[0]}?" if near else "")


def _apart(counts: dict[str, int], query: Query) -> str:
    """Filters that have runs, and none in common."""
    parts = [f"{count} match {_said(name, query)}" for name, count in counts.items()]
    parts[0] = parts[0].replace(" match", " runs match", 1)
    together = "both" if len(parts) == 2 else f"all {len(parts)}"  # noqa: PLR2004
    return f"{', '.join(parts[:-1])} and {parts[-1]}, none matches {together}"


def _said(name: str, query: Query) -> str:
    value = getattr(query, name)
    if isinstance(value, bool):
        return f"{name}={str(value).lower()}"
    return f"{name}={_moment(value) if isinstance(value, datetime) else value}"


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M}"


# Where a run says what a filter asks for.
VALUES: dict[str, Callable[[RunRecord], str]] = {
    "model": lambda record: record.tags.get("base_model", ""),
    "task": lambda record: record.params.get("task", ""),
    "gpu": lambda record: record.tags.get("gpu_type", ""),
    "study": lambda record: record.tags.get(STUDY, ""),
    "fingerprint": lambda record: record.tags.get(FINGERPRINT, ""),
}


def _family(key: str, name: str, parting: str) -> list[list[str]]:
    """Terms for a name itself, and for those that begin with it: a100 finds a100-40."""
    if not name:
        return [[]]
    return [[f"{key} = {_quoted(name)}"], [f"{key} LIKE {_quoted(name + parting + '%')}"]]


def _is_of(name: str, parting: str, value: str) -> bool:
    """Whether a value is the name, or one of its family; there is none without a parting."""
    return not name or value == name or (bool(parting) and value.startswith(name + parting))


def _quoted(text: str) -> str:
    if "'" not in text:
        return f"'{text}'"
    if '"' in text:
        raise ConfigError(f"a name with both kinds of quotation marks cannot be searched: {text}")
    return f'"{text}"'
