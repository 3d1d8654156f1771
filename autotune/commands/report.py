"""`autotune report`: write the report of a run as a page, or print it as Markdown."""

from pathlib import Path

import click

from autotune.errors import InputError, in_field
from autotune.inputs import shown
from autotune.options.command_line import PATH
from autotune.output_paths import refuse_impossible_file
from autotune.report.facts import REPORT_FILE, RunFacts


@click.command()
@click.argument("directory", metavar="DIR", type=PATH)
@click.option("--markdown", is_flag=True, help="Print Markdown, for a README or a pull request.")
@click.option("--out", type=PATH, metavar="FILE", help="The page; the default is DIR/report.html.")
def main(directory: Path, markdown: bool, out: Path | None) -> int:
    """Write report.html, a page about the run in DIR that needs no network."""
    if markdown and out is not None:
        raise InputError("cannot be given with --markdown", field="out")
    with in_field("directory"):
        facts = RunFacts(directory)
    # Imported here: chart libraries take half a second, and bad input is told before.
    from autotune.report.page import markdown_report, write_report

    if markdown:
        print(markdown_report(facts), end="")
        return 0
    file = out or directory / REPORT_FILE
    with in_field("out" if out is not None else "directory"):
        if file.suffix != ".html":
            raise InputError(f"must end in .html, got {shown(file)}")
        refuse_impossible_file(file)
    write_report(facts, file)
    print(file)
    return 0
