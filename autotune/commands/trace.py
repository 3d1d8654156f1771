"""`autotune trace`: run the code of a layout's ranks without devices, and count a step."""

import json
from typing import Any

import click

from autotune.errors import InputError
from autotune.inputs import shown
from autotune.layout import Layout
from autotune.options.command_line import COUNT_OR_ZERO
from autotune.options.one_layout import chosen_layout
from autotune.options.output import plain_console
from autotune.options.space_options import SpaceOptions, space_from_options, space_options
from autotune.report.trace import print_traced
from autotune.space import SearchSpace
from autotune.trial.registry import traced_stages
from autotune.trial.traced import TracedRank, traced_to_json


@click.command()
@space_options
@click.option("--layout", required=True, metavar="JSON", help="Layout, inline or a path.")
@click.option(
    "--stage",
    type=COUNT_OR_ZERO,
    metavar="K",
    help="Trace this pipeline stage only, from 0  [default: all]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the trace as JSON.")
def main(layout: str, stage: int | None, as_json: bool, **given: Any) -> int:
    """Count memory, collectives, FLOPs and operations of a layout's step; no device is needed.

    The worker's real code runs on tensors without values, for the first rank of each pipeline
    stage. Nothing is timed.
    """
    if given["fix"]:
        raise InputError(
            f"cannot be given with `layout`, got {shown(given['fix'][0])}", field="fix"
        )
    space = space_from_options(SpaceOptions(**given))
    chosen = chosen_layout(layout, space, "--layout")
    if stage is not None and stage >= chosen.pipeline_parallel:
        raise InputError(
            f"must be less than pipeline_parallel, {chosen.pipeline_parallel}, got {stage}",
            field="stage",
        )
    stages = range(chosen.pipeline_parallel) if stage is None else [stage]
    ranks = traced_stages(space, chosen, stages)
    if as_json:
        print(json.dumps(_content(space, chosen, ranks), indent=2))
    else:
        print_traced(plain_console(), space, chosen, ranks)
    return 0


def _content(space: SearchSpace, layout: Layout, ranks: list[TracedRank]) -> dict[str, Any]:
    """The rank that needs most memory, and all of them if there are several."""
    values = traced_to_json(ranks)
    most = max(values, key=lambda rank: rank["peak_memory_gib"])
    about = {"traced": True, "model": space.name, "layout": layout.columns()}
    return {**about, **most, **({"stages": values} if len(values) > 1 else {})}
