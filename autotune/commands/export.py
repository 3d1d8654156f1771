"""`autotune export`: write the layout of a finished trial in the format of another program."""

import sys
from pathlib import Path

import click

from autotune.errors import InputError, in_field
from autotune.export import DEFAULT_FORMAT, export_layout, formats
from autotune.inputs import shown
from autotune.options.command_line import PATH
from autotune.store.results import Run


@click.command()
@click.argument("directory", metavar="DIR", type=PATH)
@click.option(
    "--format", "form", type=click.Choice(formats()), default=DEFAULT_FORMAT, show_default=True
)
@click.option("--trial", metavar="ID", help="Which trial's layout; the default is the best.")
@click.option("--out", type=PATH, metavar="PATH", help="New folder; the default is DIR/export.")
def main(directory: Path, form: str, trial: str | None, out: Path | None) -> int:
    """Write the best layout of the run in DIR, or that of any trial that worked."""
    with in_field("directory"):
        run = Run(directory)
    layout = run.best_layout if trial is None else run.layout_of(trial)
    if layout is None:
        raise InputError(f"run {shown(directory)} must have a layout that worked, got none")
    out = out or directory / "export"
    if out.exists() and not out.is_dir():
        raise InputError(f"must be a folder, got the file {shown(out)}", field="out")
    try:
        export_layout(out, layout, run.request, form)
    except OSError as error:
        raise InputError(f"cannot write {shown(out)}: {error.strerror}", field="out") from None
    print(f"wrote {layout.describe()} into {out}", file=sys.stderr)
    return 0
