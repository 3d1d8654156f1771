"""Sections of a report about what a search found, and what that cost."""

import re
import statistics

from autotune.report.advice import advice
from autotune.report.effort import CLOSE, Effort
from autotune.report.facts import RunFacts, counted_as, hours_text, number
from autotune.report.page.sections import Figure, Section, Table
from autotune.report.page.trial_table import COLUMNS, NUMERIC, trial_row

_TOP = 5
_MOST_REASONS = 5
_LONGEST_REASON = 200
_NUMBERS = re.compile(r"\d+")


def best_layout(facts: RunFacts) -> Section:
    """The best layout, and the fastest beside it."""
    if facts.best is None:
        return Section(
            title="Best layout", sentences=["No layout has worked so far."], points=_reasons(facts)
        )
    best = facts.best
    measured = best.measurement
    how = {
        "confirm": "confirmed by a longer trial",
        "explore": "not confirmed by a longer trial",
        "reduced": "extrapolated from fewer micro-batches, not confirmed",
    }[best.purpose]
    if facts.word == "replayed":
        how = "the one figure that is on record"
    seconds = number(measured.step_seconds, ".4g", "s")
    spread = number(measured.step_seconds_iqr, ".2g", "s")
    sentences = [
        f"{best.layout.describe()}: {seconds} per step, {facts.word} over "
        f"{measured.measured_steps} steps (interquartile range {spread}), {how}.",
    ]
    equal = facts.equal_to_best
    if equal:
        names = ", ".join(record.trial_id for record in equal)
        word = "trial" if len(equal) == 1 else "trials"
        sentences.append(f"Equally fast within the noise of the steps: {word} {names}.")
    rows = [trial_row(record) for record in facts.ranked[:_TOP]]
    if (facts.directory / "export").exists():
        sentences.append("Train it with export/launch.sh of the run directory.")
    ran = len(facts.ranked)
    table = Table(
        caption=f"The fastest {min(_TOP, ran)} of {ran} layouts, {facts.word}",
        columns=COLUMNS,
        rows=rows,
        numeric=NUMERIC,
    )
    return Section(title="Best layout", sentences=sentences, tables=[table])


def _reasons(facts: RunFacts) -> list[str]:
    """The most frequent reasons of trials that failed, each with the first trial."""
    counted: dict[str, list[str]] = {}
    for record in facts.records:
        # Ranks and sizes differ between trials of one cause.
        kind = f"{record.outcome}: {_NUMBERS.sub('N', record.reason)}"
        counted.setdefault(kind, []).append(record.trial_id)
    frequent = sorted(counted.values(), key=len, reverse=True)[:_MOST_REASONS]
    by_id = {record.trial_id: record for record in facts.records}
    return [
        f"{counted_as(len(trials), 'trial')} as {trials[0]}: {by_id[trials[0]].outcome}: "
        f"{by_id[trials[0]].reason[:_LONGEST_REASON]}"
        for trials in frequent
    ]


def what_trials_say(facts: RunFacts) -> Section | None:
    """Advice in words; None where no layout ran."""
    found = advice(facts)
    if not found:
        return None
    return Section(
        title="What the trials say",
        points=[f"{item.sentence} ({item.basis})" for item in found],
    )


def by_dimension(facts: RunFacts) -> Section | None:
    """Speed of all trials by dimension; None where all layouts are the same."""
    from autotune.report.charts.trials import by_dimension as chart
    from autotune.report.charts.trials import speed_of

    varied = facts.varied
    if not varied:
        return None
    _, speed, _ = speed_of(facts)
    figure = Figure(
        title=f"{speed.partition(',')[0]} of all trials by dimension",
        caption=f"{speed}, of exploring trials. A bar marks the best that worked with a value; "
        "trials without a figure stand on the lower edge. A layout that failed its longer trial "
        "counts as failed.",
        charts=lambda: [chart(facts, name, width="container") for name in varied],
    )
    return Section(title="By dimension", figures=[figure], in_text=False)


def memory_and_time(facts: RunFacts) -> Section | None:
    """Memory against step time; None where no memory was measured."""
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


def predictions(facts: RunFacts) -> Section | None:
    """Predicted against measured step times; None where there is nothing to compare."""
    from autotune.report.charts.trials import predicted_against_measured

    if facts.predicted is None or not facts.worked:
        return None
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
    return Section(title=f"Predicted and {facts.word}", sentences=sentences, figures=[figure])


def cost_of_search(facts: RunFacts, costs: Effort) -> Section:
    """What the search cost, beside other ways."""
    from autotune.report.charts.course import course

    hours = f"{hours_text(costs.gpu_hours)} GPU-hours"
    found = "The best layout"
    if costs.trials is not None:
        found = f"The best layout was exploring trial {costs.trials} of {len(facts.explored)}"
    simulated = "" if facts.word == "measured" else f" ({facts.word})"
    sentences = [f"{found}; all trials took {hours}{simulated}."]
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
