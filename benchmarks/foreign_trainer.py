"""Trials that guided search needs where other code trains than its cost model describes.

    python benchmarks/foreign_trainer.py [--world NAME|FILE.json]... [--space NAME]... [--seeds K]

A world is the cost model of another trainer with constants that are off by chance
(`trainables.simulated.World`); the search begins with the constants of deepspeed_llm. It ends with
the first layout whose step time is within 1 % of the world's best. Measurements are off by 0.5 %.
For comparison: the same search beginning with the world's own trainer. With `--chance` every layout
has an error of its own, of 2 % in time and 3 % in memory, that no search can know.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from autotune.cost.model import CostModel
from autotune.cost.trainers import StatedTrainer, trainer_of
from autotune.layout import Layout
from autotune.named_spaces import load_space
from autotune.options.command_line import command_line
from autotune.search import Observation, Prior, Search, TrialCost, Unpruned, make_search
from autotune.space import SearchSpace
from autotune.trial.trial import Outcome
from trainables.simulated import Results, World

STARTUP_SECONDS = 120.0
STEPS = 15
GOOD_ENOUGH = 1.01
NOISE = 0.005
MOST_TRIALS = 40
"""A search that has found nothing by then counts as one more."""
_WIDTH = 130
_FILES = Path(__file__).parent / "trainers"
WORLDS = (
    str(_FILES / "perfect_overlap.json"),
    str(_FILES / "deepspeed_llm_perfect_overlap.json"),
    "megatron",
    "nemo",
    "fsdp2",
    "deepspeed_llm",
)
CASES = (
    *(("llm13b", nodes) for nodes in (2, 8, 32)),
    *(("llm30b", nodes) for nodes in (8, 32)),
    *(("llm65b", nodes) for nodes in (16, 32)),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One search in one world."""

    trials: int
    out_of_memory: int
    longest_ask_seconds: float


def find(search: Search, layouts: Sequence[Layout], results: Results, seed: int) -> Found:
    """Run a search to the first layout within 1 % of the best, or to MOST_TRIALS."""
    place = {layout: index for index, layout in enumerate(layouts)}
    good = GOOD_ENOUGH * results.step_seconds[results.fits].min()
    random = np.random.default_rng(seed)
    unpruned = Unpruned(layouts)
    longest, failed = 0.0, 0
    for trial in range(1, MOST_TRIALS + 1):
        begun = time.perf_counter()
        layout = search.ask()
        longest = max(longest, time.perf_counter() - begun)
        if layout is None:
            break
        index = place[layout]
        fits, seconds = bool(results.fits[index]), float(results.step_seconds[index])
        if fits and seconds <= good:
            return Found(trials=trial, out_of_memory=failed, longest_ask_seconds=longest)
        failed += not fits
        observation = Observation(
            layout=layout,
            outcome=Outcome.OK if fits else Outcome.OOM,
            step_seconds=seconds * float(np.exp(NOISE * random.normal())) if fits else None,
            peak_memory_gib=float(results.peak_memory_gib[index]) if fits else None,
        )
        search.tell(observation)
        search.discard(pruned.layout for pruned in unpruned.rule_out(observation))
    return Found(trials=MOST_TRIALS + 1, out_of_memory=failed, longest_ask_seconds=longest)


def searches(
    space: SearchSpace, world: StatedTrainer, stated: StatedTrainer, seeds: int, *, chance: bool
) -> list[Found]:
    """A search per seed of the world that begins with the constants of `stated`."""
    trainer = trainer_of(world)
    layouts = [layout for layout in space.layouts() if trainer.why_unsupported(layout) is None]
    model = CostModel(space.model, space.precision, space.cluster, trainer=stated)
    prior = Prior(model, layouts)
    cost = TrialCost(
        seconds=lambda layout: (STARTUP_SECONDS, STEPS),
        devices=space.cluster.devices,
        training_gpu_hours=math.inf,  # no early end: only the trials to a good layout count
        training_steps=1,
    )
    found = []
    for seed in range(seeds):
        simulated = World(
            space.model,
            space.precision,
            space.cluster,
            trainer=trainer,
            seed=seed,
            chance_of_layouts=chance,
        )
        search = make_search("guided", layouts, seed=seed, prior=prior, cost=cost)
        found.append(find(search, layouts, simulated.results(layouts), seed))
    return found


def case(name: str, nodes: int) -> SearchSpace:
    """A named space on so many nodes."""
    space = load_space(name)
    return dataclasses.replace(space, cluster=dataclasses.replace(space.cluster, nodes=nodes))


def _case(text: str) -> tuple[str, int]:
    name, _, nodes = text.partition("@")
    if not nodes.isdigit() or int(nodes) < 1:
        raise click.BadParameter(f"must be SPACE@NODES, got {text!r}", param_hint="--case")
    return name, int(nodes)


@click.command()
@click.option("--world", "worlds", multiple=True, metavar="NAME|FILE.json", help="Repeatable.")
@click.option("--case", "cases", multiple=True, metavar="SPACE@NODES", help="Repeatable.")
@click.option("--stated", default="deepspeed_llm", show_default=True, metavar="NAME|FILE.json")
@click.option("--seeds", type=click.IntRange(min=1), default=10, show_default=True, metavar="K")
@click.option("--chance", is_flag=True, help="Every layout has an error of its own.")
@click.option("--json", "out", type=click.Path(path_type=Path), metavar="OUT")
def main(
    worlds: Sequence[str],
    cases: Sequence[str],
    stated: str,
    seeds: int,
    chance: bool,
    out: Path | None,
) -> int:
    """Search simulated worlds of other trainers."""
    spaces = [case(*chosen) for chosen in (map(_case, cases) if cases else CASES)]
    pairs = [(world, space) for world in worlds or WORLDS for space in spaces]
    rows = []
    for world, space in track(pairs, "searching", console=Console(stderr=True), transient=True):
        row: dict[str, Any] = {
            "world": trainer_of(world).name,
            "space": space.name,
            "nodes": space.cluster.nodes,
        }
        for key, begins_with in (("stated", stated), ("own", world)):
            found = searches(space, world, begins_with, seeds, chance=chance)
            row[f"{key}_trials"] = [one.trials for one in found]
            row[f"{key}_out_of_memory"] = [one.out_of_memory for one in found]
            row[f"{key}_longest_ask_seconds"] = max(one.longest_ask_seconds for one in found)
        rows.append(row)
    _print(rows, stated, seeds)
    if out is not None:
        out.write_text(json.dumps({"simulated": True, "rows": rows}, indent=2) + "\n", "utf-8")
    return 0


def _print(rows: Sequence[dict[str, Any]], stated: str, seeds: int) -> None:
    table = Table(
        title=f"Simulated, {seeds} seeds: trials to within 1 % of the world's best, median and max"
    )
    headings = ("world", "space", "nodes", f"from {stated}", "out of memory", "from its own")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("world", "space") else "right")
    for row in rows:
        trials, own = row["stated_trials"], row["own_trials"]
        table.add_row(
            row["world"],
            row["space"],
            str(row["nodes"]),
            f"{np.median(trials):g}, {max(trials)}",
            f"{np.median(row['stated_out_of_memory']):g}",
            f"{np.median(own):g}, {max(own)}",
        )
    console = Console(width=_WIDTH)
    console.print(table)
    every = np.array([row["stated_trials"] for row in rows])
    longest = max(row["stated_longest_ask_seconds"] for row in rows)
    console.print(
        f"searches with at most 4 trials: {(every <= 4).mean():.0%}; "
        f"longest ask: {1e3 * longest:.0f} ms"
    )


if __name__ == "__main__":
    sys.exit(command_line(main))
