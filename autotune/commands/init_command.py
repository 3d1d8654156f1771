"""`autotune init-command`: a commented file to begin with, for a training script."""

import sys
from pathlib import Path

import click

from autotune.errors import InputError, in_field
from autotune.inputs import shown
from autotune.options.command_line import PATH
from autotune.output_paths import refuse_impossible_file
from autotune.store.files import write_atomically
from autotune.trial.registry import describe_trainable

_TRAINABLE = "command"


@click.command()
@click.argument("script", metavar="SCRIPT", type=PATH)
@click.option("--out", type=PATH, metavar="FILE", help="New file  [default: SCRIPT with .toml]")
def main(script: Path, out: Path | None) -> int:
    """Write a file that says how SCRIPT is started, with what can be told from its options."""
    template = describe_trainable(_TRAINABLE).command_template
    assert template is not None
    out = out or script.with_suffix(".toml")
    with in_field("script"):
        text = template(script, out)
    with in_field("out"):
        if out.exists():
            raise InputError(f"must be a new file, got {shown(out)}, which exists")
        refuse_impossible_file(out)
        write_atomically(out, lambda path: path.write_text(text, "utf-8"))
    print(f"wrote {out}; look it over, then: autotune try --command {out}", file=sys.stderr)
    return 0
