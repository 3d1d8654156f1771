"""Progress of a search on a terminal or as plain lines, and the table of the best layouts."""

import collections
import datetime
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from autotune.ledger.ranking import equal_within_noise
from autotune.ledger.search_setup import CONFIRMED
from autotune.report.layouts import add_layout_column, narrow_table
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
        self._seconds: list[float] = []
        """Wall time of each finished trial."""
        self._progress = Progress(
            TextColumn("trials"),
            MofNCompleteColumn(),
            BarColumn(bar_width=16),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
        )
        self._task = self._progress.add_task("")
        self._running = Text("starting")
        self._live = Live(Group(self._progress, self._running), console=console, transient=True)

    def search_begins(
        self, request: Request, directory: Path, finished: Sequence[TrialRecord]
    ) -> None:
        """Print space and cluster; `finished` are the trials before a resumption."""
        space = request.space
        self._max_trials = request.max_trials
        self._memory_limit_gib = space.cluster.memory_gib or space.cluster.device.memory_gib
        self._outcomes.update(r.outcome for r in finished if r.purpose != "confirm")
        self._seconds += map(_wall_seconds, finished)
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
        if self.console.is_terminal:
            self._live.start()

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
        self._live.stop()

    def trial_started(self, spec: TrialSpec) -> None:
        """Show which layout runs."""
        self.show_running(spec.layout.describe(), "starting")

    def step_done(self, spec: TrialSpec, step: StepReport) -> None:
        """Show the step and its time."""
        done = f"step {step.step + 1}/{spec.all_steps} {step.step_seconds:.3g} s"
        self.show_running(spec.layout.describe(), done)

    def show_running(self, layout: str, doing: str) -> None:
        """Show a layout that runs and what it does, below the progress bar."""
        self._running.plain = f"{layout} · {doing}"
        self._show_progress()

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
        self._seconds.append(_wall_seconds(record))
        self._progress.update(self._task, completed=done)
        self._show_progress()

    def _show_progress(self) -> None:
        counts = " ".join(f"{outcome}={n}" for outcome, n in sorted(self._outcomes.items()))
        words = (f"best {_seconds(self._best_seconds)}", counts, self._latest_end())
        self._progress.update(self._task, description=escape(" · ".join(filter(None, words))))

    def _latest_end(self) -> str:
        """When the search ends at the latest, if its trials go on to take so long."""
        left = self._max_trials - self._outcomes.total() + CONFIRMED
        if not self._seconds or left <= 0:
            return ""
        end = datetime.datetime.now() + datetime.timedelta(
            seconds=left * statistics.fmean(self._seconds)
        )
        tomorrow = "" if end.date() == datetime.date.today() else f"{end:%Y-%m-%d} "
        return f"ends by {tomorrow}{end:%H:%M}"


def print_best(console: Console, best: Sequence[TrialRecord], *, simulated: bool = False) -> None:
    """Print a table of the fastest layouts."""
    which = "simulated or replayed" if simulated else "that ran"
    shown = best[:_TOP]
    table = narrow_table(f"Fastest {len(shown)} of {len(best)} layouts {which}")
    cells = add_layout_column(table, [record.layout for record in shown], console.width)
    is_mfu_known = any(record.measurement.mfu is not None for record in shown)
    speed = "MFU" if is_mfu_known else "tok/s/GPU"
    for heading in ("step s", "IQR", "vs best", speed, "GiB", "trial"):
        table.add_column(heading, justify="right", no_wrap=heading != "vs best")
    for record, layout in zip(shown, cells, strict=True):
        measured = record.measurement
        rate = _number(measured.tokens_per_second_per_gpu, ".0f")
        table.add_row(
            layout,
            _number(measured.step_seconds, ".3f"),
            _number(measured.step_seconds_iqr, ".3f"),
            _beside(best[0], record),
            _number(measured.mfu, ".1%") if is_mfu_known else rate,
            _number(measured.peak_memory_gib, ".2f"),
            f"{record.trial_id}{_PURPOSE_MARKS[record.purpose]}",
        )
    used = {record.purpose for record in shown}
    marks = [f"{_PURPOSE_MARKS[purpose]}: {_PURPOSES[purpose]}" for purpose in _PURPOSES]
    notes = [mark for mark, purpose in zip(marks, _PURPOSES, strict=True) if purpose in used]
    table.caption = "; ".join(map(str, filter(None, (table.caption, *notes)))) or None
    console.print(table)


_PURPOSE_MARKS = {"confirm": "c", "reduced": "r", "explore": ""}
_PURPOSES = {
    "confirm": "confirmed by a longer trial",
    "reduced": "extrapolated from fewer micro-batches",
}


def _beside(best: TrialRecord, record: TrialRecord) -> str:
    """How much longer a step takes than with the best layout."""
    if record is best:
        return "best"
    if equal_within_noise(best, record):
        return "within noise"
    seconds, fastest = record.measurement.step_seconds, best.measurement.step_seconds
    return "-" if not seconds or not fastest else f"{seconds / fastest - 1:+.1%}"


def _wall_seconds(record: TrialRecord) -> float:
    return max(0.0, (record.finished_at - record.started_at).total_seconds())


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s"


def _gib(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} GiB"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
