"""`autotune scale`: how the best layout's throughput grows with the number of nodes."""

import json
from pathlib import Path
from typing import Any

import click

from autotune.cost.trainers import known_trainers, trainer_of
from autotune.errors import InputError, in_field
from autotune.inputs import LARGEST_COUNT, shown
from autotune.options.command_line import COUNT, PATH
from autotune.options.output import plain_console
from autotune.options.search_options import (
    AUTO,
    SearchOptions,
    request_from_options,
    trainable_choices,
)
from autotune.options.space_options import (
    SpaceOptions,
    space_from_options,
    space_options_but_nodes,
)
from autotune.place import Place
from autotune.report import Screen
from autotune.report.facts import RunFacts
from autotune.report.scaling import (
    KINDS,
    Kind,
    ScalePoint,
    plain_point,
    point_of_run,
    point_without_layout,
    predicted_point,
    print_scaling,
    spaces_on,
    with_efficiency,
)
from autotune.space import SearchSpace
from autotune.tuning import search_or_go_on


@click.command()
@space_options_but_nodes
@click.option("--nodes", required=True, metavar="N,N...", help="Numbers of nodes, as 1,2,4,8.")
@click.option(
    "--kind",
    type=click.Choice([*KINDS, "both"]),
    default="both",
    show_default=True,
    help="strong: the same global batch; weak: the same batch per node.",
)
@click.option(
    "--trainer",
    default="deepspeed_llm",
    metavar="NAME|FILE.json",
    help="Training code to predict: " + ", ".join(known_trainers()) + ", or a file.",
)
@click.option("--out", type=PATH, metavar="DIR", help="Search on each, into runs in this folder.")
@click.option(
    "--trainable",
    type=click.Choice([name for name in trainable_choices() if name not in ("replay", "command")]),
    default=AUTO,
    show_default=True,
    help="What runs the trials of --out.",
)
@click.option("--max-trials", type=COUNT, metavar="N", help="Exploring trials of each search.")
@click.option("--address", metavar="RAY", help="Address of a running Ray cluster, for --out.")
@click.option("--figure", type=PATH, metavar="FILE", help="Draw it (.svg, .png or .html).")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def main(
    nodes: str,
    kind: str,
    trainer: str,
    out: Path | None,
    trainable: str,
    max_trials: int | None,
    address: str | None,
    figure: Path | None,
    as_json: bool,
    **given: Any,
) -> int:
    """The best layout on several numbers of nodes: predicted, or with --out by searches.

    Searches of an earlier call in the same folder are gone on with.
    """
    if figure is not None:
        from autotune.report.charts.files import refuse_chart_file

        refuse_chart_file(figure, field="figure")
    if out is None and (trainable != AUTO or max_trials is not None or address is not None):
        raise InputError("--trainable, --max-trials and --address need --out, which is not given")
    counts = _counts(nodes)
    with in_field("trainer"):
        own = trainer_of(trainer)
    space = space_from_options(SpaceOptions(**given))
    if out is None:
        space = space.replaced({"deepspeed_engine": own.deepspeed_engine}, what=None)
    kinds = [known for known in KINDS if kind in (known, "both")]
    spaces = [(own_kind, on) for own_kind in kinds for on in spaces_on(space, own_kind, counts)]
    if out is None:
        points = [predicted_point(on, own_kind, own) for own_kind, on in spaces]
        if all(point.layout is None for point in points):
            raise InputError(f"no layout on any of these numbers of nodes: {points[0].why_none}")
    else:
        options = {"trainable": trainable, "max_trials": max_trials, "address": address}
        points = _searched(spaces, out, options, quiet=as_json)
    points = [p for k in kinds for p in with_efficiency([q for q in points if q.kind == k])]
    if as_json:
        print(json.dumps({"points": [plain_point(point) for point in points]}, indent=2))
    else:
        print_scaling(plain_console(), points)
    if figure is not None:
        from autotune.report.charts.files import write_chart
        from autotune.report.charts.scaling import scaling_chart

        write_chart(scaling_chart(points), figure)
    return 0


def _counts(text: str) -> list[int]:
    """Numbers of nodes, from few to many. Raises InputError."""
    counts = []
    for word in map(str.strip, text.split(",")):
        is_number = word.isascii() and word.isdecimal() and len(word) <= len(str(LARGEST_COUNT))
        number = int(word) if is_number else 0
        if not 1 <= number <= LARGEST_COUNT:
            raise InputError(
                f"must be numbers from 1 to {LARGEST_COUNT}, got {shown(text)}", field="nodes"
            )
        counts.append(number)
    if len(set(counts)) < len(counts):
        raise InputError(f"must not repeat a number, got {shown(text)}", field="nodes")
    return sorted(counts)


def _searched(
    spaces: list[tuple[Kind, SearchSpace]], out: Path, options: dict[str, Any], *, quiet: bool
) -> list[ScalePoint]:
    """Search each space that has a layout. Spaces with the same batch share a search."""
    reasons: dict[str, str] = {}
    requests = {}
    for _, space in spaces:
        try:
            space.check_not_empty()
        except InputError as error:
            reasons[_name(space)] = str(error)
        else:
            requests[_name(space)] = request_from_options(SearchOptions(space=space, **options))
    if not requests:
        raise InputError(
            f"no layout on any of these numbers of nodes: {next(iter(reasons.values()))}"
        )
    place = Place(address=options["address"])
    screen = Screen(plain_console(stderr=True) if quiet else plain_console())
    for name, request in requests.items():
        search_or_go_on(request, out / name, place, screen)
    points = []
    for kind, space in spaces:
        name = _name(space)
        if name in reasons:
            points.append(point_without_layout(space, kind, "not run", reasons[name]))
        else:
            points.append(point_of_run(RunFacts(out / name), kind))
    return points


def _name(space: SearchSpace) -> str:
    return f"{space.cluster.nodes}-nodes-batch-{space.model.global_batch_size}"
