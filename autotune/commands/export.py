"""`autotune export`: write the layout of a finished trial in the format of another program."""

import sys
from pathlib import Path

import click

from autotune.errors import InputError, in_field
from autotune.export import default_format, export_layout, format_named, formats
from autotune.inputs import shown
from autotune.layout import Layout
from autotune.options.command_line import PATH
from autotune.request import Request
from autotune.store.results import Run


@click.command()
@click.argument("directory", metavar="DIR", type=PATH)
@click.option(
    "--format",
    type=click.Choice(formats()),
    help="The default starts the training code of the trials.",
)
@click.option("--trial", metavar="ID", help="Which trial's layout; the default is the best.")
@click.option("--out", type=PATH, metavar="PATH", help="New folder; the default is DIR/export.")
def main(directory: Path, format: str | None, trial: str | None, out: Path | None) -> int:
    """Write the best layout of the run in DIR, or that of any trial that worked."""
    with in_field("directory"):
        run = Run(directory)
    layout = run.best_layout if trial is None else run.layout_of(trial)
    if layout is None:
        raise InputError(f"run {shown(directory)} must have a layout that worked, got none")
    name = format or default_format(run.request)
    write_export(out or directory / "export", layout, run.request, name)
    return 0


def write_export(out: Path, layout: Layout, request: Request, form: str) -> None:
    """Write the layout into the folder, and print what was written and what is not expressed.

    Raises InputError.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"must be a folder, got the file {shown(out)}", field="out")
    try:
        exported = export_layout(out, layout, request, form)
    except OSError as error:
        raise InputError(f"cannot write {shown(out)}: {error.strerror}", field="out") from None
    print(f"wrote {layout.describe()} into {out}", file=sys.stderr)
    print(f"for {format_named(form).checked_against}", file=sys.stderr)
    for note in exported.notes:
        print(f"note: {note}", file=sys.stderr)
