"""`autotune ablate`: what each choice of the best layout is worth."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from autotune.errors import InputError, in_field
from autotune.options.command_line import PATH
from autotune.options.output import plain_console
from autotune.options.search_options import environment
from autotune.place import Place
from autotune.report import Screen
from autotune.report.ablation import Variation, ablation, layouts_to_run, print_ablation
from autotune.report.facts import RunFacts
from autotune.store.record import TrialRecord
from autotune.tuning import search_or_go_on

# Slow variations are to be measured, not stopped.
_NEVER_STOP = 1e9


@click.command()
@click.argument("directory", metavar="DIR", type=PATH)
@click.option("--out", type=PATH, metavar="NEW", help="Run all of them, into a new run directory.")
@click.option("--address", metavar="RAY", help="Address of a running Ray cluster, for --out.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Environment of the ranks.")
@click.option("--trust-run", is_flag=True, help="Run the command or variables that the run has.")
@click.option("--figure", type=PATH, metavar="FILE", help="Draw it (.svg, .png or .html).")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def main(
    directory: Path,
    out: Path | None,
    address: str | None,
    env: tuple[str, ...],
    trust_run: bool,
    figure: Path | None,
    as_json: bool,
) -> int:
    """Change one dimension of the best layout of the run in DIR at a time.

    Step times are those of the run's trials, and predicted. With --out all variations are run; the
    same command goes on where it was interrupted, and prints the table of a finished one.
    """
    if figure is not None:
        from autotune.report.charts.files import refuse_chart_file

        refuse_chart_file(figure, field="figure")
    if out is None and (address is not None or env or trust_run):
        raise InputError("--address, --env and --trust-run need --out, which is not given")
    with in_field("directory"):
        facts = RunFacts(directory)
    variations = ablation(facts)
    trials = facts
    if out is not None:
        trials = _run(facts, out, address, environment(env), trust_run, as_json=as_json)
        variations = ablation(facts, trials)
    if as_json:
        content = {
            "word": trials.word,
            "best": variations[0].value,
            "variations": [_plain(variation) for variation in variations],
        }
        print(json.dumps(content, indent=2))
    else:
        print_ablation(plain_console(), variations, trials.word)
    if figure is not None:
        from autotune.report.charts.ablation import ablation_chart
        from autotune.report.charts.files import write_chart

        write_chart(ablation_chart(variations, trials.word), figure)
    return 0


def _run(
    facts: RunFacts,
    out: Path,
    address: str | None,
    env: dict[str, str],
    trust_run: bool,
    *,
    as_json: bool,
) -> RunFacts:
    """Run all variations in a search of their own."""
    request = facts.request
    if request.runs is not None:
        raise InputError("cannot be given for a replay: there is nothing to run", field="out")
    if not trust_run:
        request.refuse_unless_given_again(env)
    layouts = layouts_to_run(facts)
    with in_field("directory"):
        request = dataclasses.replace(
            request,
            search="grid",
            layouts=layouts,
            max_trials=len(layouts),
            gpu_hours=None,
            reduced_trials=False,
            prune=False,
            stop_factor=_NEVER_STOP,
        )
    screen = Screen(plain_console(stderr=as_json))
    search_or_go_on(request, out, Place(address=address), screen)
    return RunFacts(out)


def _plain(variation: Variation) -> dict[str, Any]:
    layout = variation.layout
    return {
        "dimensions": list(variation.dimensions),
        "value": variation.value,
        "layout": None if layout is None else layout.columns(),
        "why_not": variation.why_not,
        "follows": list(variation.follows),
        "predicted_step_seconds": variation.predicted_seconds,
        "predicted_fit_probability": variation.fit_probability,
        **_trial(variation.record),
    }


def _trial(record: TrialRecord | None) -> dict[str, Any]:
    names: Sequence[str] = ("trial_id", "outcome", "step_seconds", "step_seconds_iqr")
    if record is None:
        return dict.fromkeys(names)
    row = record.row()
    return {name: row[name] for name in names}
