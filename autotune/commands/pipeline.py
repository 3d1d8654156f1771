"""`autotune pipeline`: what the pipeline stages of a finished trial do when, in a step."""

import sys
from pathlib import Path

import click

from autotune.errors import InputError, in_field
from autotune.inputs import shown
from autotune.options.command_line import PATH
from autotune.pipeline.schedule import Schedule
from autotune.report.schedule_file import refuse_schedule_file, write_schedule
from autotune.report.schedules import schedule_of
from autotune.store.results import Run


@click.command()
@click.argument("directory", metavar="DIR", type=PATH)
@click.argument("trial", metavar="[TRIAL]", required=False)
@click.option(
    "--out",
    type=PATH,
    required=True,
    metavar="FILE",
    help="New file: .svg, .png or .html is a picture, .json a trace for ui.perfetto.dev.",
)
def main(directory: Path, trial: str | None, out: Path) -> int:
    """Draw a step of the best trial of the run in DIR, or of any trial that worked.

    The step is the last one that was traced (run --trace-steps). Where none was, it is predicted.
    """
    with in_field("directory"):
        run = Run(directory)
    best = run.best
    if trial is None and best is None:
        raise InputError(f"run {shown(directory)} must have a layout that worked, got none")
    # 7 is trial 0007.
    trial_id = str(best["trial_id"]) if trial is None and best is not None else str(trial).zfill(4)
    layout = run.layout_of(trial_id)
    schedule = schedule_of(run, trial_id, layout)
    title = f"trial {trial_id}, {layout.describe()}"
    write_new_schedule(out, schedule, layout=title, field="out")
    return 0


def write_new_schedule(path: Path, schedule: Schedule, *, layout: str, field: str) -> None:
    """Write the schedule into a new file, and say whether it is measured.

    Raises InputError in the field of the path.
    """
    with in_field(field):
        refuse_schedule_file(path)
        try:
            write_schedule(path, schedule, layout=layout)
        except OSError as error:
            raise InputError(f"cannot write {shown(path)}: {error.strerror}") from None
    print(
        f"wrote the {schedule.source} schedule of {layout} into {path}: "
        f"{schedule.step_seconds:.3g} s per step, bubble {schedule.bubble_share:.1%}",
        file=sys.stderr,
    )
