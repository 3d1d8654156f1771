"""What the report of a run says: sections of sentences, tables and charts, in their order."""

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from autotune.errors import InputError
from autotune.report.advice import advice
from autotune.report.effort import CLOSE, Effort, effort
from autotune.report.facts import (
    RunFacts,
    dimension_label,
    hours_text,
    number,
    percent,
    request_rows,
    state,
)
from autotune.report.plan import headline
from autotune.report.schedules import schedule_of
from autotune.space import not_generated
from autotune.store.record import TrialRecord
from autotune.store.results import Run

_TOP = 5
_MOST_REASONS = 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells as text; numbers are aligned to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[str] = frozenset()
    """Columns of numbers."""
    caption: str = ""
    long: bool = False
    """Whether it is only for who wants to look something up."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A chart, or several small ones of one kind."""

    title: str
    caption: str
    charts: Callable[[], Sequence[Any]]
    """Makes the Altair charts, which take the width of their place. A text report needs none."""
    scrolls: bool = False
    """Whether the charts keep their width, and are scrolled where there is less."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading and what stands under it."""

    title: str
    sentences: Sequence[str] = ()
    points: Sequence[str] = ()
    """Sentences of a list."""
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    in_text: bool = True
    """Whether a text report has it."""


def title(facts: RunFacts) -> str:
    """The title of the report."""
    return f"Layouts of {facts.space.name}, {facts.word}"


def notices(facts: RunFacts) -> list[str]:
    """What a reader must know before any figure."""
    found = [facts.request.description.notice, facts.warning]
    slow = sorted({r.slow_device for r in facts.records if r.slow_device is not None})
    return [*filter(None, found), *(f"slow device: {device}" for device in slow)]


def sections(facts: RunFacts) -> list[Section]:
    """The sections of a run's report."""
    costs = effort(facts)
    parts = [_best(facts), _advice(facts), _by_dimension(facts), _memory(facts), *_plots(facts)]
    if costs is not None:
        parts.append(_effort(facts, costs))
    parts += [_pipeline(facts), _causes(facts), _outcomes(facts), _environment(facts)]
    return [part for part in parts if part is not None]


def _best(facts: RunFacts) -> Section:
    if facts.best is None:
        return Section(title="Best layout", sentences=["No layout has worked so far."])
    best = facts.best
    measured = best.measurement
    how = {
        "confirm": "confirmed by a longer trial",
        "explore": "not confirmed by a longer trial",
        "reduced": "extrapolated from fewer micro-batches, not confirmed",
    }[best.purpose]
    seconds = number(measured.step_seconds, ".4g", "s")
    spread = number(measured.step_seconds_iqr, ".2g", "s")
    sentences = [
        f"{best.layout.describe()}: {seconds} per step, {facts.word} over "
        f"{measured.measured_steps} steps (interquartile range {spread}), {how}.",
    ]
    equal = facts.equal_to_best
    if equal:
        names = ", ".join(record.trial_id for record in equal)
        sentences.append(f"Equally fast within the noise of the steps: trials {names}.")
    rows = [_row(facts, record) for record in facts.ranked[:_TOP]]
    if facts.request.description.export_format is not None:
        sentences.append("Train it with export/launch.sh of the run directory.")
    ran = len(facts.ranked)
    table = Table(
        caption=f"The fastest {min(_TOP, ran)} of {ran} layouts, {facts.word}",
        columns=_COLUMNS,
        rows=rows,
        numeric=_NUMERIC,
    )
    return Section(title="Best layout", sentences=sentences, tables=[table])


_COLUMNS = (
    "trial",
    "layout",
    "outcome",
    "s per step",
    "IQR",
    "MFU",
    "tokens/s/GPU",
    "GiB",
    "purpose",
)
_NUMERIC = frozenset({"s per step", "IQR", "MFU", "tokens/s/GPU", "GiB"})


def _row(facts: RunFacts, record: TrialRecord) -> list[str]:
    measured = record.measurement
    return [
        record.trial_id,
        record.layout.describe(),
        record.outcome.value,
        number(measured.step_seconds, ".4g"),
        number(measured.step_seconds_iqr, ".2g"),
        percent(measured.mfu),
        number(measured.tokens_per_second_per_gpu, ".4g"),
        number(measured.peak_memory_gib, ".3g"),
        record.purpose,
    ]


def _advice(facts: RunFacts) -> Section | None:
    found = advice(facts)
    if not found:
        return None
    return Section(
        title="What the trials say",
        points=[f"{item.sentence} ({item.basis})" for item in found],
    )


def _by_dimension(facts: RunFacts) -> Section | None:
    from autotune.report.charts.trials import by_dimension, speed_of

    varied = facts.varied()
    if not varied:
        return None
    _, speed, _ = speed_of(facts)
    figure = Figure(
        title=f"{speed.partition(',')[0]} of all trials by dimension",
        caption=f"{speed}, of exploring trials. A bar marks the best that worked with a value; "
        "trials without a figure stand on the lower edge.",
        charts=lambda: [by_dimension(facts, name, width="container") for name in varied],
    )
    return Section(title="By dimension", figures=[figure], in_text=False)


def _memory(facts: RunFacts) -> Section | None:
    from autotune.report.charts.trials import memory_against_time

    if not any(r.measurement.peak_memory_gib for r in facts.records):
        return None
    hollow = (
        " Layouts that ran out of memory before a step was measured stand, hollow, where the cost "
        "model predicts them."
    )
    figure = Figure(
        title="Peak memory against step time",
        caption=f"Each trial, {facts.word}; the line joins the layouts that no other one beats in "
        "both." + (hollow if facts.predicted is not None else ""),
        charts=lambda: [memory_against_time(facts, width="container")],
    )
    return Section(title="Memory and time", figures=[figure], in_text=False)


def _plots(facts: RunFacts) -> Iterator[Section]:
    from autotune.report.charts.trials import predicted_against_measured

    if facts.predicted is None or not facts.worked:
        return
    errors, inside, corrected = [], 0, []
    for record in facts.worked:
        seconds = record.measurement.step_seconds or 0.0
        place = facts.predicted.place(record.layout)
        alone = float(facts.predicted.estimates.step_seconds[place])
        errors.append(abs(alone / seconds - 1))
        inside += bool(facts.predicted.low[place] <= seconds <= facts.predicted.high[place])
        if record.prediction is not None:
            corrected.append(abs(record.prediction.step_seconds / seconds - 1))
    share = inside / len(errors)
    sentences = [
        f"Median error of the predicted step time: {statistics.median(errors):.1%} for the cost "
        f"model alone ({share:.0%} of {len(errors)} trials inside its 80 % interval)"
        + (
            f", {statistics.median(corrected):.1%} as corrected by the trials before."
            if corrected
            else "."
        )
    ]
    figure = Figure(
        title=f"Predicted against {facts.word} step time",
        caption="On the dashed line a prediction is right. Bars: the 80 % interval of the cost "
        "model alone.",
        charts=lambda: [predicted_against_measured(facts, width="container")],
    )
    yield Section(title=f"Predicted and {facts.word}", sentences=sentences, figures=[figure])


def _effort(facts: RunFacts, costs: Effort) -> Section:
    from autotune.report.charts.course import course

    hours = f"{hours_text(costs.gpu_hours)} GPU-hours"
    sentences = [
        f"The best layout was exploring trial {costs.trials} of {len(facts.explored)}; all trials "
        f"took {hours}{'' if facts.word == 'measured' else f' ({facts.word})'}."
    ]
    if costs.random_trials is not None and costs.random_gpu_hours is not None:
        sentences.append(
            f"Random order is predicted to need {costs.random_trials:,.0f} trials "
            f"({hours_text(costs.random_gpu_hours)} GPU-hours) on average until it finds a layout "
            f"within {CLOSE:.0%} of it."
        )
    if costs.brute_force_gpu_hours is not None:
        sentences.append(
            f"A trial of each of the {costs.layouts:,} layouts is predicted to take "
            f"{hours_text(costs.brute_force_gpu_hours)} GPU-hours."
        )
    figure = Figure(
        title="The best step time so far",
        caption="By number of exploring trials and by GPU-hours; random order is predicted.",
        charts=lambda: [
            course(facts, costs, by=by, width="container") for by in ("trials", "gpu_hours")
        ],
    )
    return Section(title="Cost of the search", sentences=sentences, figures=[figure])


def _outcomes(facts: RunFacts) -> Section:
    rows = [[*_row(facts, record), record.reason] for record in facts.records]
    table = Table(
        caption=f"All {len(rows)} trials",
        columns=(*_COLUMNS, "reason"),
        rows=rows,
        numeric=_NUMERIC,
        long=True,
    )
    tables = [table]
    excluded = {} if facts.request.layouts is not None else not_generated(facts.space)
    pruned: dict[str, int] = {}
    for layout in facts.store.pruned():
        pruned[layout.reason] = pruned.get(layout.reason, 0) + 1
    for what, counted in (
        ("Layouts that a result ruled out", pruned),
        ("Combinations that are no layouts", excluded),
    ):
        ordered = sorted(counted.items(), key=lambda item: -item[1])
        shown = [[f"{count:,}", reason] for reason, count in ordered[:_MOST_REASONS]]
        if rest := ordered[_MOST_REASONS:]:
            left = sum(count for _, count in rest)
            shown.append([f"{left:,}", f"{len(rest)} other reasons"])
        if shown:
            caption = f"{what}: {sum(counted.values()):,}"
            tables.append(
                Table(
                    caption=caption,
                    columns=("layouts", "reason"),
                    rows=shown,
                    numeric=frozenset({"layouts"}),
                    long=True,
                )
            )
    return Section(title="Every outcome", sentences=[state(facts)], tables=tables, in_text=False)


def _pipeline(facts: RunFacts) -> Section | None:
    from autotune.report.charts.pipeline import pipeline_chart

    best = facts.best
    if best is None or best.layout.pipeline_parallel == 1:
        return None
    try:
        schedule = schedule_of(Run(facts.directory), best.trial_id)
    except InputError:  # the device is not known, or the trace is damaged
        return None
    sentences = [
        f"One step of {best.layout.describe()}, {schedule.source}: "
        f"{schedule.step_seconds:.3g} s, of which the stages are idle for "
        f"{schedule.bubble_share:.1%} on average (the bubble)."
    ]
    figure = Figure(
        title=f"What the pipeline stages do in one step, {schedule.source}",
        caption="A row is a stage, a number a micro-batch.",
        charts=lambda: [pipeline_chart(schedule, layout=best.layout.describe(), width=900)],
        scrolls=True,
    )
    return Section(
        title=f"Pipeline, {schedule.source}", sentences=sentences, figures=[figure], in_text=False
    )


def _causes(facts: RunFacts) -> Section | None:
    from autotune.report.charts.causes import memory_by_cause, time_by_cause

    best, predicted = facts.best, facts.predicted
    if best is None or predicted is None:
        return None
    place = predicted.place(best.layout)
    seconds = float(predicted.estimates.step_seconds[place])
    memory = float(predicted.estimates.peak_memory_gib[place])
    sentences = [
        f"{best.layout.describe()}: predicted {seconds:.4g} s and {memory:.3g} GiB, {facts.word} "
        f"{number(best.measurement.step_seconds, '.4g', 's')} and "
        f"{number(best.measurement.peak_memory_gib, '.3g', 'GiB')}."
    ]
    figure = Figure(
        title="Where the best layout's time and memory go",
        caption="Predicted by the cost model, without correction by trials.",
        charts=lambda: [
            time_by_cause(predicted.estimates, place, width="container"),
            memory_by_cause(predicted.estimates, place, width="container"),
        ],
    )
    return Section(
        title="Time and memory of the best, predicted",
        sentences=sentences,
        figures=[figure],
        in_text=False,
    )


def _network(facts: RunFacts) -> Table:
    """The network that predictions assume; `autotune probe` names the library in its files."""
    links = facts.space.cluster.links
    cards = "one per device" if links.nics_per_node is None else str(links.nics_per_node)
    rows = [
        ["network", links.name],
        ["links between devices", f"{links.link_gb_per_second:.4g} GB/s"],
        ["network cards of a node", f"{cards}, {links.nic_gbit_per_second:.4g} Gb/s each"],
        ["source", links.source],
    ]
    measured = {c.source for c in links.constants.values()}
    rows += [["collectives", source] for source in sorted(measured)]
    return Table(
        caption="The network that predictions assume", columns=("what", "value"), rows=rows
    )


def _versions(facts: RunFacts) -> str:
    versions = facts.store.versions
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"Run by {named or 'a version that did not say which'}."


def _environment(facts: RunFacts) -> Section:
    tables = [
        Table(
            caption="The search",
            columns=("setting", "value"),
            rows=[[name, str(value)] for name, value in request_rows(facts)],
        )
    ]
    columns = ("address", "accelerator", "driver", "python", "torch", "deepspeed", "ray")
    if facts.store.nodes:
        rows = [
            ["–" if node.get(name) is None else str(node[name]) for name in columns]  # noqa: RUF001
            for node in facts.store.nodes
        ]
        tables.append(Table(caption="Its nodes", columns=columns, rows=rows, long=True))
    tables.append(_network(facts))
    restricted = [
        [dimension_label(name), ", ".join(str(value).lower() for value in values)]
        for name in facts.varied()
        if (values := getattr(facts.space, name, None)) is not None
    ]
    tables.append(
        Table(caption="Values that were searched", columns=("dimension", "values"), rows=restricted)
    )
    return Section(
        title="Environment",
        sentences=[headline(facts.space), _versions(facts)],
        tables=tables,
        in_text=False,
    )
