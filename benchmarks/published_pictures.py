"""Pictures of published runs: predicted against published step times (SVG).

python -m benchmarks.published_pictures --runs CSV --out FOLDER
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from autotune.calibration.published_runs import read_published_runs
from autotune.errors import in_field
from autotune.options.command_line import command_line
from benchmarks.published import Judged, clean_rows, judge, write_text

# Text stays text, and the same data makes the same bytes.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "published", "font.size": 9})


@click.command()
@click.option("--runs", "path", type=click.Path(path_type=Path), required=True, metavar="CSV")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FOLDER")
def main(path: Path, out: Path) -> int:
    """Write published_step_times.svg and published_errors.svg into the folder."""
    clean = clean_rows([judge(run) for run in read_published_runs(path)])
    _step_times(clean, out / "published_step_times.svg")
    _errors(clean, out / "published_errors.svg")
    return 0


def _by_source(clean: Sequence[Judged]) -> dict[str, list[Judged]]:
    groups: dict[str, list[Judged]] = {}
    for row in sorted(clean, key=lambda row: row.run.source.lower()):
        groups.setdefault(row.run.source, []).append(row)
    return groups


def _step_times(clean: Sequence[Judged], file: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 5.4), layout="constrained")
    published = [row.run.step_seconds or 0.0 for row in clean]
    ends = np.array([min(published) / 1.3, max(published) * 1.3])
    axes.fill_between(ends, ends / 1.1, ends * 1.1, color="0.9", label="within 10 %")
    axes.plot(ends, ends, color="0.4", linewidth=0.8)
    for source, rows in _by_source(clean).items():
        axes.scatter(
            [row.run.step_seconds or 0.0 for row in rows],
            [row.step_seconds or 0.0 for row in rows],
            s=12,
            alpha=0.7,
            label=f"{source} ({len(rows)})",
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="published seconds per step",
        ylabel="predicted seconds per step",
        title="Predicted against published step times",
    )
    axes.legend(fontsize=8)
    _save(figure, file)


def _errors(clean: Sequence[Judged], file: Path) -> None:
    groups = _by_source(clean)
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    axes.axvspan(-10, 10, color="0.9")
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.boxplot(
        [[100 * row.error for row in rows] for rows in groups.values()],
        orientation="horizontal",
        tick_labels=[f"{source} ({len(rows)})" for source, rows in groups.items()],
        flierprops={"markersize": 3},
    )
    axes.set(
        xlabel="error of the predicted step time in %",
        title="Errors by source (grey: within 10 %)",
    )
    axes.invert_yaxis()
    _save(figure, file)


def _save(figure: plt.Figure, file: Path) -> None:
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    plt.close(figure)
    # Matplotlib ends lines of paths with blanks.
    lines = [line.rstrip() for line in drawn.getvalue().splitlines()]
    with in_field("out"):
        write_text(file, "\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(command_line(main))
