"""`autotune show`: print a run, or one trial of it in full."""

from pathlib import Path

import click

from autotune.errors import InputError, in_field
from autotune.inputs import shown
from autotune.options.command_line import PATH
from autotune.options.output import plain_console
from autotune.report.facts import RunFacts
from autotune.report.trial import print_run, print_trial


@click.command()
@click.argument("directory", metavar="DIR", type=PATH)
@click.argument("trial", required=False)
def main(directory: Path, trial: str | None) -> int:
    """Print the run in DIR, or its trial TRIAL: figures, causes, steps and the ends of its logs."""
    with in_field("directory"):
        facts = RunFacts(directory)
    console = plain_console()
    if trial is None:
        print_run(console, facts)
        return 0
    # 7 is trial 0007.
    number = trial.zfill(4)
    found = next((record for record in facts.records if record.trial_id == number), None)
    if found is None:
        last = facts.records[-1].trial_id if facts.records else "none"
        raise InputError(
            f"must be the number of a finished trial (the last is {last}), got {shown(trial)}",
            field="trial",
        )
    print_trial(console, facts, found)
    return 0
