"""What one measurement of `benchmarks.training` is, and the page that shows all of them."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.record import table

LONGEST = 512  # tokens of an example, and of every row that is padded to the maximum
WATTS = 4.0  # of a busy core: CodeCarbon's for a thread of a CPU that it does not know

# The promise: at least so many times less than grouping by length takes, and never more than TRL.
GOALS = {"qa": 2.5, "summarization": 1.3, "sentiment": 1.3}
GROUPED = "hf-grouped"
PACKED = ("trl-padding-free", "trl-packing")
OURS = "green-tune"
WHAT = {
    "hf-max": f"transformers' Trainer, rows padded to {LONGEST} tokens",
    GROUPED: "transformers' Trainer, padded to the longest, examples grouped by length",
    PACKED[0]: "TRL's SFTTrainer, padding_free",
    PACKED[1]: "TRL's SFTTrainer, packing bfd: rows as long as a step's examples on average, "
    "one a step, so that steps and their examples are as many",
    "green-flat": "green-tune without padding, nothing shared",
    "green-tree": "green-tune without padding, what prompts share computed once",
    OURS: "green-tune as it comes: it chooses",
}
GREEN = {"green-flat": "flat", "green-tree": "tree", OURS: "auto"}
BASELINES = tuple(name for name in WHAT if name not in GREEN)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What one training took, and what came of it."""

    wall_s: float
    cpu_s: float
    gpu_j: float  # 0 on a CPU
    examples: int
    useful: int  # tokens of all examples, without padding, shared ones counted for each
    computed: int  # tokens that went through the model
    steps: int
    loss_before: float
    loss_after: float
    flops: float  # modelled; see `_flops`
    peak_flops: float  # that the device promises in a second; 0 where that is not known
    memory_gib: float  # measured peak; 0 on a CPU
    estimate_gib: float

    def joules(self, watts: float) -> float:
        """Measured on a GPU; on a CPU so many watts for each second of a busy core."""
        return self.gpu_j or self.cpu_s * watts


Results = dict[tuple[str, str], dict[str, list[Taken]]]  # by model and task, by contender


def report(known: Mapping[str, str], results: Results, watts: float, device: str) -> str:
    """Markdown that reads well in a terminal."""
    lines = [f"# Training, for the same examples: {known['machine']}", ""]
    lines += [f"- {name}: {text}" for name, text in known.items() if name != "machine"]
    lines += ["", *(f"- `{name}`: {text}" for name, text in WHAT.items()), ""]
    lines += [_of_joules(watts, device), ""]
    for (model, task), found in results.items():
        lines += [*_of_task(model, task, found, watts), ""]
    return "\n".join(lines).rstrip() + "\n"


def _of_joules(watts: float, device: str) -> str:
    if device == "cuda":
        return "Joules are measured, by the GPU's own counter; CPU and memory are not in them."
    return (
        f"Joules are modelled: {watts:g} W for each second of a busy core, an assumption. Their "
        "ratios, `x`, are those of CPU seconds. It was not run on a GPU."
    )


def _of_task(
    model: str, task: str, found: Mapping[str, Sequence[Taken]], watts: float
) -> Iterator[str]:
    some = next(iter(found.values()), None)
    yield f"## {task}, {model}"
    yield ""
    if not some:
        yield "Nothing was measured."
        return
    one = some[0]
    yield (
        f"{one.examples} examples, {one.useful} useful tokens; loss before {one.loss_before:.4f}. "
        f"Medians of {len(some)}. `x name`: so many times less energy than it took."
    )
    yield ""
    yield from _table(found, watts)
    yield from _verdicts(task, found, watts)


def _table(found: Mapping[str, Sequence[Taken]], watts: float) -> list[str]:
    columns = _columns(watts, on_gpu=any(t.gpu_j for taken in found.values() for t in taken))
    bases = [name for name in BASELINES if name in found]
    head = ("contender", *columns, *(f"x {base}" for base in bases))
    rows = [
        (
            name,
            *(cell(taken) for cell in columns.values()),
            *(f"{times_less(taken, found[base], watts):.2f}" for base in bases),
        )
        for name, taken in found.items()
    ]
    return table(head, rows)


def _columns(watts: float, *, on_gpu: bool) -> dict[str, Callable[[Sequence[Taken]], str]]:
    """Medians by what they are called."""
    cells: dict[str, tuple[str, Callable[[Taken], float]]] = {
        "CPU s": ("{:.1f}", lambda t: t.cpu_s),
        "wall s": ("{:.1f}", lambda t: t.wall_s),
        "tok/CPU s": ("{:.0f}", lambda t: t.useful / t.cpu_s),
        "tok/s": ("{:.0f}", lambda t: t.useful / t.wall_s),
        "mJ/tok": ("{:.2f}", lambda t: 1000 * t.joules(watts) / t.useful),
        "computed/useful": ("{:.2f}", lambda t: t.computed / t.useful),
        "steps": ("{:.0f}", lambda t: t.steps),
        "loss after": ("{:.4f}", lambda t: t.loss_after),
    }
    if on_gpu:
        cells |= {
            "% of peak": (
                "{:.0f}",
                lambda t: 100 * t.flops / t.wall_s / (t.peak_flops or math.inf),
            ),
            "peak GiB": ("{:.1f}", lambda t: t.memory_gib),
            "estimate GiB": ("{:.1f}", lambda t: t.estimate_gib),
        }
    return {name: partial(_median, *cell) for name, cell in cells.items()}


def _median(form: str, figure: Callable[[Taken], float], taken: Sequence[Taken]) -> str:
    return form.format(statistics.median(map(figure, taken)))


def times_less(ours: Sequence[Taken], theirs: Sequence[Taken], watts: float) -> float:
    """How many times less energy one takes than the other, for the same examples."""
    mine, other = (statistics.median(t.joules(watts) for t in taken) for taken in (ours, theirs))
    return other / mine


def _verdicts(task: str, found: Mapping[str, Sequence[Taken]], watts: float) -> Iterator[str]:
    """Whether the goals are met; nothing of those that were not measured."""
    least = {GROUPED: GOALS[task], **dict.fromkeys(PACKED, 1.0)}
    for base, goal in least.items():
        if base not in found or OURS not in found:
            continue
        times = times_less(found[OURS], found[base], watts)
        rounds = [
            times_less([mine], [other], watts)
            for mine, other in zip(found[OURS], found[base], strict=False)
        ]
        yield (
            f"- Goal, at least {goal:g} x {base}: {'met' if times >= goal else 'not met'}, "
            f"{times:.2f} ({min(rounds):.2f} to {max(rounds):.2f} in single rounds)."
        )
