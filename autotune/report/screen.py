"""Progress of a search on a terminal or as plain lines, and the table of the best layouts."""

import collections
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from autotune.request import Request
from autotune.store.record import TrialRecord
from autotune.trial.trial import Outcome, StepReport, TrialSpec

_STYLES = {Outcome.OK: "green", Outcome.STOPPED: "yellow", Outcome.OOM: "red"}
_TOP = 5
_LONGEST_REASON = 100


class Screen:
    """Prints a line per finished trial; on a terminal also a progress bar. A `Listener`."""

    def __init__(self, console: Console) -> None:
        """Call `search_begins` before anything else is shown."""
        self.console = console
        self._max_trials = 0
        self._memory_limit_gib: float | None = None
        self._outcomes: collections.Counter[Outcome] = collections.Counter()
        self._best_seconds: float | None = None
        self._progress = Progress(
            TextColumn("trials"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("starting")

    def search_begins(
        self, request: Request, directory: Path, finished: Sequence[TrialRecord]
    ) -> None:
        """Print space and cluster; `finished` are the trials before a resumption."""
        space = request.space
        self._max_trials = request.max_trials
        self._memory_limit_gib = space.cluster.memory_gib or space.cluster.device.memory_gib
        self._outcomes.update(r.outcome for r in finished if r.purpose != "confirm")
        times = [r.measurement.step_seconds for r in finished if r.outcome is Outcome.OK]
        self._best_seconds = min(filter(None, times), default=None)
        resumed = f", {len(finished)} trials already finished" if finished else ""
        layouts = f"{len(request.all_layouts())} layouts on {space.cluster.describe()}"
        self.note(
            f"searching {space.name}: {layouts}, at most {request.max_trials} trials{resumed}, "
            f"into {directory}"
        )
        done = self._outcomes.total()
        self._progress.update(self._task, total=request.max_trials, completed=done)
        self._progress.start()

    def note(self, sentence: str) -> None:
        """Print a line."""
        self.console.print(sentence, soft_wrap=True, markup=False, highlight=False)

    def warn(self, sentence: str) -> None:
        """Print a highlighted line."""
        self.console.print(
            sentence, style="bold yellow", soft_wrap=True, markup=False, highlight=False
        )

    def search_ends(self) -> None:
        """Remove the progress bar."""
        self._progress.stop()

    def trial_started(self, spec: TrialSpec) -> None:
        """Show which layout runs."""
        self._describe(f"{spec.layout.describe()} · starting")

    def step_done(self, spec: TrialSpec, step: StepReport) -> None:
        """Show the step and its time."""
        self._describe(
            f"{spec.layout.describe()} · step {step.step + 1}/"
            f"{spec.steps * (len(spec.micro_batch_counts) or 1)} "
            f"{step.step_seconds:.3g} s"
        )

    def trial_begins_again(self, spec: TrialSpec, reason: str) -> None:
        """Print why the trial is repeated."""
        line = f"[  again] {spec.layout.describe()}  ({reason[:_LONGEST_REASON]})"
        self.console.print(line, style="yellow", soft_wrap=True, highlight=False)

    def trial_finished(self, record: TrialRecord) -> None:
        """Print the result of the trial."""
        if record.purpose != "confirm":
            self._outcomes[record.outcome] += 1
        seconds = record.measurement.step_seconds
        if record.outcome is Outcome.OK and seconds is not None:
            self._best_seconds = min(seconds, self._best_seconds or seconds)
        done = self._outcomes.total()
        style = _STYLES.get(record.outcome, "magenta")
        number = f"{done:>3}/{self._max_trials}" if record.purpose != "confirm" else record.purpose
        line = (
            f"\\[{number:>7}] [{style}]{record.outcome:<8}[/] "
            f"{_seconds(seconds):>8} {_gib(record.measurement.peak_memory_gib):>9}  "
            f"{record.layout.describe()}"
        )
        if record.purpose == "reduced" and record.outcome is Outcome.OK:
            counts = " and ".join(map(str, record.measurement.measured_micro_batches))
            line += f"  (extrapolated from {counts} micro-batches)"
        if record.outcome is Outcome.OOM and self._memory_limit_gib is not None:
            line += f"  (limit {self._memory_limit_gib:.3g} GiB)"
        if record.outcome not in (Outcome.OK, Outcome.OOM):
            line += f"  ({escape(record.reason[:_LONGEST_REASON])})"
        self.console.print(line, soft_wrap=True, highlight=False, markup=True)
        self._progress.update(self._task, completed=done)

    def _describe(self, running: str) -> None:
        best = f"best {_seconds(self._best_seconds)}"
        counts = " ".join(f"{outcome}={n}" for outcome, n in sorted(self._outcomes.items()))
        words = (best, counts, running)
        self._progress.update(self._task, description=escape(" · ".join(filter(None, words))))


def print_best(console: Console, best: Sequence[TrialRecord], *, simulated: bool = False) -> None:
    """Print a table of the fastest layouts."""
    which = "simulated or replayed" if simulated else "that ran"
    table = Table(title=f"Fastest {min(_TOP, len(best))} of {len(best)} layouts {which}")
    table.add_column("layout", no_wrap=True)
    for heading in ("step s", "IQR", "tokens/s/GPU", "MFU", "GiB", "trial", "kind"):
        table.add_column(heading, justify="right")
    for record in best[:_TOP]:
        measured = record.measurement
        table.add_row(
            record.layout.describe(),
            _number(measured.step_seconds, ".3f"),
            _number(measured.step_seconds_iqr, ".3f"),
            _number(measured.tokens_per_second_per_gpu, ".0f"),
            _number(measured.mfu, ".1%"),
            _number(measured.peak_memory_gib, ".2f"),
            record.trial_id,
            record.purpose,
        )
    console.print(table)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s"


def _gib(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} GiB"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
