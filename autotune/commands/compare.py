"""`autotune compare`: the best layouts of several runs beside each other."""

import json
from pathlib import Path

import click

from autotune.errors import in_field
from autotune.options.command_line import PATH
from autotune.options.output import plain_console
from autotune.report.comparison import compare, plain, print_comparison
from autotune.report.facts import RunFacts


@click.command()
@click.argument("directories", metavar="DIR...", nargs=-1, required=True, type=PATH)
@click.option("--anyway", is_flag=True, help="Compare runs that are not alike, and say how.")
@click.option("--figure", type=PATH, metavar="FILE", help="Draw it (.svg, .png or .html).")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def main(directories: tuple[Path, ...], anyway: bool, figure: Path | None, as_json: bool) -> int:
    """Compare the best layouts of runs on the same devices with the same model and batch.

    Runs that differ in those are refused, unless --anyway is given.
    """
    if figure is not None:
        from autotune.report.charts.files import refuse_chart_file

        refuse_chart_file(figure, field="figure")
    with in_field("directories"):
        runs = [RunFacts(directory) for directory in directories]
    comparison = compare(runs, anyway=anyway)
    if as_json:
        print(json.dumps(plain(comparison), indent=2))
    else:
        print_comparison(plain_console(), comparison)
    if figure is not None:
        from autotune.report.charts.comparison import comparison_chart
        from autotune.report.charts.files import write_chart

        write_chart(comparison_chart(comparison), figure)
    return 0
