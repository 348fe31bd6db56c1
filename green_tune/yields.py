"""The tables of what hyperparameters do, what a loss costs, and how efficient the work was.

As `tables`, of which they are a part: rows in base units, shown as their columns say.
"""

from collections.abc import Mapping, Sequence
from statistics import mean, median

from green_tune import blocks, marginal
from green_tune.blocks import Block
from green_tune.document import Column, Table
from green_tune.importance import Importance
from green_tune.responses import Correlations
from green_tune.tables import GPU, KG_TO_G, LABELS, RUNS, Records, Row, grams, named


def effects(correlated: Mapping[str, Correlations], importances: Sequence[Importance]) -> Table:
    """How each hyperparameter goes along with each response, and how much of it it explains."""
    shares = {(each.name, each.objective): each for each in importances}
    rows = [
        {
            "reckoned": way.lower(),
            "hyperparameter": name,
            "response": response,
            "spearman": found.estimate,
            "spearman_low": found.low,
            "spearman_high": found.high,
            "runs": found.n,
            **(_share(shares.get((name, response))) if way == "Per run" else {}),
        }
        for way, intervals in correlated.items()
        for (name, response), found in intervals.items()
    ]
    columns = (
        *(Column(name=name, heading=name) for name in ("hyperparameter", "response", "reckoned")),
        Column(name="spearman", heading="rho", digits=2),
        Column(name="spearman_low", heading="from", digits=2),
        Column(name="spearman_high", heading="to", digits=2),
        RUNS,
        Column(name="importance", heading="explains, %", factor=100, digits=2),
        Column(name="importance_low", heading="from", factor=100, digits=2),
        Column(name="importance_high", heading="to", factor=100, digits=2),
    )
    note = (
        "rho: Spearman's, the other hyperparameters held, within models, tasks, data sets and "
        "GPUs, with a 95 % bootstrap interval; 0 also where the best lies in the middle. "
        "Explains: the share of the variance by fANOVA, with an 80 % bootstrap interval."
    )
    return Table(name="effects", title="Effects", columns=columns, rows=rows, note=note)


def _share(found: Importance | None) -> Row:
    if found is None:
        return {}
    return {
        "importance": found.share,
        "importance_low": found.low,
        "importance_high": found.high,
    }


def marginals(records: Records, losses: Mapping[Block, float]) -> Table:
    """What a target loss and the next 0.01 nats cost in each block."""
    rows: list[Row] = []
    for block, alike in blocks.group(records, blocks.block).items():
        prices, bend = marginal.front_per_hundredth(alike), marginal.knee(alike)
        loss = losses.get(block)
        reached = [g for r in alike if loss and (g := marginal.grams_to(r, loss)) is not None]
        rows.append(
            {
                "panel": blocks.panel(alike[0]),
                "model": block.model,
                "runs": len(alike),
                "target_loss": loss,
                "runs_there": len(reached),
                "least_kg_to_target": min(reached) / KG_TO_G if reached else None,
                "median_kg_to_target": median(reached) / KG_TO_G if reached else None,
                "bend_loss": bend.val_loss if bend else None,
                "bend_kg": bend.emissions_kg if bend else None,
                "first_hundredth_kg": prices[0].grams / KG_TO_G if prices else None,
                "last_hundredth_kg": prices[-1].grams / KG_TO_G if prices else None,
            }
        )
    columns = (
        *LABELS,
        RUNS,
        Column(name="target_loss", heading="target loss", digits=4),
        Column(name="runs_there", heading="there"),
        grams("least_kg_to_target", "least g to it"),
        grams("median_kg_to_target", "median"),
        Column(name="bend_loss", heading="bend at", digits=4),
        grams("bend_kg", "g there"),
        grams("first_hundredth_kg", "first 0.01, g"),
        grams("last_hundredth_kg", "last 0.01, g"),
    )
    return Table(
        name="marginal",
        title="Grams for a loss",
        columns=columns,
        rows=named(rows, records),
        note="Along the front of each block: what its first and its last 0.01 nats cost.",
    )


def efficiency(
    values: Mapping[tuple[str, str], Sequence[float]], floors: Mapping[str, float]
) -> Table:
    """Millijoules per trained token and billion base parameters, and how far above the floor."""
    floor = min(floors.values())
    rows = [
        {
            "model": model,
            "gpu_type": gpu,
            "runs": len(found),
            "mj_per_token_per_billion": mean(found),
            "above_floor": mean(found) / floor,
        }
        for (model, gpu), found in sorted(values.items())
    ]
    published = ", ".join(f"{name} {x:.2g}" for name, x in floors.items())
    columns = (
        LABELS[1],
        GPU,
        RUNS,
        Column(name="mj_per_token_per_billion", heading="mJ/token/B"),
        Column(name="above_floor", heading="x the floor"),
    )
    return Table(
        name="efficiency",
        title="Energy per token",
        columns=columns,
        rows=rows,
        note=f"Means. The floor is the lowest of MLPerf's LoRA entries ({published}).",
    )
