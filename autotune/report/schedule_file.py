"""Writes a schedule as a file: a picture, a page, or a trace for Perfetto."""

import json
from pathlib import Path

from autotune.errors import InputError
from autotune.inputs import shown
from autotune.output_paths import refuse_impossible_file
from autotune.pipeline.schedule import Schedule
from autotune.pipeline.trace_events import trace_events
from autotune.store.files import write_atomically

SUFFIXES = (".svg", ".png", ".html", ".json")
"""Endings of such a file; .json is the trace."""


def refuse_schedule_file(path: Path) -> None:
    """Raise InputError where no schedule can be written into a new file of that name."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"must end in {', '.join(SUFFIXES)}, got {shown(path)}")
    if path.exists():
        raise InputError(f"must be a new file, got {shown(path)}, which exists")
    refuse_impossible_file(path)


def write_schedule(path: Path, schedule: Schedule, *, layout: str) -> None:
    """Write the schedule in the format that the path ends in; `layout` describes its layout.

    Raises OSError.
    """
    if path.suffix == ".json":
        content = (json.dumps(trace_events(schedule)) + "\n").encode()
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
        return
    # Imported here because they take long to import: invalid input is reported before.
    from autotune.report.charts import write_chart
    from autotune.report.charts.pipeline import pipeline_chart

    write_chart(pipeline_chart(schedule, layout=layout), path)
