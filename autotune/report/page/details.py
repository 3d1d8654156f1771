"""Sections of a report for who wants to look something up."""

from autotune.errors import InputError
from autotune.report.facts import RunFacts, dimension_label, number, request_rows, state
from autotune.report.page.sections import Figure, Section, Table
from autotune.report.page.trial_table import COLUMNS, NUMERIC, trial_row
from autotune.report.plan import headline
from autotune.report.schedules import schedule_of
from autotune.space import not_generated
from autotune.store.results import Run

_MOST_REASONS = 20


def pipeline(facts: RunFacts) -> Section | None:
    """What the pipeline stages of the best layout do; None where it has no pipeline, or nothing is
    known of it."""
    from autotune.report.charts.pipeline import pipeline_chart

    best = facts.best
    if best is None or best.layout.pipeline_parallel == 1:
        return None
    try:
        schedule = schedule_of(Run(facts.directory), best.trial_id, best.layout)
    except InputError:  # the device is not known, or the trace is damaged
        return None
    sentences = [
        f"One step of {best.layout.describe()}, {schedule.source}: "
        f"{schedule.step_seconds:.3g} s, of which the stages are idle for "
        f"{schedule.bubble_share:.1%} on average (the bubble). Waiting for the slowest stage is "
        "part of it; by cause, below, it counts as what that stage computes."
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


def causes(facts: RunFacts) -> Section | None:
    """Predicted time and memory of the best layout by cause; None where nothing is predicted."""
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


def outcomes(facts: RunFacts) -> Section:
    """Every trial, and the layouts that were not tried."""
    rows = [[*trial_row(record), record.reason] for record in facts.records]
    table = Table(
        caption=f"All {len(rows)} trials",
        columns=(*COLUMNS, "reason"),
        rows=rows,
        numeric=NUMERIC,
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


def environment(facts: RunFacts) -> Section:
    """Request, nodes, versions and network."""
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
        for name in facts.varied
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
