"""The best layout of a run with one dimension changed at a time: what each choice is worth."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from autotune.errors import InputError
from autotune.inputs import listed
from autotune.layout import DIMENSIONS, SEARCHED, Layout
from autotune.ledger.ranking import equal_within_noise
from autotune.report.facts import RunFacts, dimension_label, number, percent
from autotune.report.layouts import narrow_table
from autotune.space import Excluded
from autotune.store.record import TrialRecord
from autotune.trial.trial import Outcome

TRADED = ("tensor_parallel", "pipeline_parallel")
"""Dimensions that are also changed against each other, at an equal product."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """The best layout with another value of one dimension, or of two at an equal product."""

    dimensions: tuple[str, ...]
    """What was changed; empty: nothing."""
    value: str
    """The values, as text."""
    layout: Layout | None
    """The layout; None where it is not possible."""
    why_not: str | None = None
    """Why it is not possible."""
    follows: tuple[str, ...] = ()
    """Other dimensions that a rule or the number of devices changed with it."""
    predicted_seconds: float | None = None
    """Predicted step time, corrected by the median error of the run; None where nothing is
    predicted."""
    fit_probability: float | None = None
    """Predicted probability that it fits into memory."""
    record: TrialRecord | None = None
    """Its trial; None where it has none."""

    @property
    def label(self) -> str:
        """What was changed, as a heading."""
        return " against ".join(map(dimension_label, self.dimensions)) or "the best layout"


def layouts_to_run(facts: RunFacts) -> tuple[Layout, ...]:
    """The best layout and all of its variations that are possible. Raises InputError where no
    layout has worked."""
    variations = (variation.layout for variation in _variations(facts))
    return tuple(dict.fromkeys(layout for layout in variations if layout is not None))


def ablation(facts: RunFacts, trials: RunFacts | None = None) -> list[Variation]:
    """The best layout of the run, then its variations by dimension, with predictions and trials.

    Trials are those of the run itself, or of another one. Raises InputError where no layout has
    worked.
    """
    source = trials or facts
    variations = list(_variations(facts))
    layouts = list(dict.fromkeys(v.layout for v in variations if v.layout is not None))
    predicted = source.predict(layouts)
    records = {record.layout: record for record in source.records if record.purpose != "confirm"}
    # A longer trial counts more, also where it failed.
    records |= {record.layout: record for record in source.ranked} | dict(source.failed)
    completed = []
    for variation in variations:
        figures: dict[str, Any] = {}
        if variation.layout is not None:
            figures["record"] = records.get(variation.layout)
            if predicted is not None:
                place = predicted.place(variation.layout)
                seconds = float(predicted.estimates.step_seconds[place])
                figures["predicted_seconds"] = seconds * (source.time_factor or 1.0)
                figures["fit_probability"] = float(predicted.estimates.fit_probability[place])
        completed.append(dataclasses.replace(variation, **figures))
    return completed


def _variations(facts: RunFacts) -> Iterator[Variation]:
    if facts.best is None:
        raise InputError("must be a run in which a layout worked", field="directory")
    best = facts.best.layout
    yield Variation(dimensions=(), value=best.describe(), layout=best)
    listed_before: set[Layout | None] = {best}
    for name in SEARCHED:
        declared = DIMENSIONS[name].values or ()
        for value in sorted({*declared, *getattr(facts.space, name)}, key=_in_order):
            if value != getattr(best, name):
                variation = _variation(facts, best, {name: value})
                listed_before.add(variation.layout)
                yield variation
    first, second = (getattr(best, name) for name in TRADED)
    product = first * second
    for size in range(1, product + 1):
        if product % size == 0 and size != first:
            values = dict(zip(TRADED, (size, product // size), strict=True))
            traded = _variation(facts, best, values)
            # As the value of one dimension alone it is in the list already.
            if traded.layout is None or traded.layout not in listed_before:
                yield traded


def _variation(facts: RunFacts, best: Layout, values: dict[str, Any]) -> Variation:
    found = facts.space.changed(best, **values)
    text = ", ".join(str(v).lower() if isinstance(v, bool) else str(v) for v in values.values())
    dimensions = tuple(values)
    if isinstance(found, Excluded):
        return Variation(dimensions=dimensions, value=text, layout=None, why_not=found.reason)
    if reason := _why_not_trained(facts, found, best):
        return Variation(dimensions=dimensions, value=text, layout=None, why_not=reason)
    follows = tuple(
        name
        for name in DIMENSIONS
        if name not in values and getattr(found, name) != getattr(best, name)
    )
    return Variation(dimensions=dimensions, value=text, layout=found, follows=follows)


def _why_not_trained(facts: RunFacts, layout: Layout, best: Layout) -> str | None:
    """Why the trainable of the run cannot run the layout, or None."""
    description = facts.request.description
    for name in SEARCHED:
        value = getattr(layout, name)
        if value != getattr(best, name) and name not in description.dimensions:
            return f"trainable {description.name} does not vary {name}"
        known = description.values.get(name)
        if known is not None and value not in known:
            return f"trainable {description.name} knows {name} {listed(list(map(str, known)))} only"
    return None


def _in_order(value: object) -> tuple[bool, Any]:
    return isinstance(value, str), value


def print_ablation(console: Console, variations: Sequence[Variation], word: str) -> None:
    """Print the variations as a table, and why others are not possible."""
    best = variations[0]
    console.print(f"the best layout: {best.value}", soft_wrap=True)
    table = narrow_table("One dimension changed at a time")
    table.caption = "equal: within the noise of the steps"
    table.add_column("dimension", min_width=14)
    table.add_column("value", min_width=10)
    for heading in ("predicted s", "fits", f"{word} s", "trial"):
        table.add_column(heading, justify="right")
    last = None
    for variation in variations:
        if variation.layout is None:
            continue
        if variation.label != last:
            table.add_section()
        table.add_row(
            variation.label if variation.label != last else "",
            _value(variation) if variation.dimensions else "",
            _beside(best.predicted_seconds, variation.predicted_seconds),
            percent(variation.fit_probability, 0),
            _of_trial(best, variation),
            variation.record.trial_id if variation.record is not None else "",
        )
        last = variation.label
    console.print(table)
    for variation in variations:
        if _is_faster(variation, best):
            console.print(
                f"faster than the best layout of the run: {variation.label} {variation.value}",
                style="bold yellow",
                soft_wrap=True,
            )
    for variation in variations:
        if variation.why_not is not None:
            console.print(
                f"not possible: {variation.label} {variation.value}: {variation.why_not}",
                soft_wrap=True,
            )


def _is_faster(variation: Variation, best: Variation) -> bool:
    """Whether its trial was faster than that of the best layout by more than the noise."""
    record, of_best = variation.record, best.record
    if record is None or of_best is None or record is of_best or record.outcome is not Outcome.OK:
        return False
    seconds, fastest = record.measurement.step_seconds, of_best.measurement.step_seconds
    is_noise = equal_within_noise(of_best, record)
    return bool(seconds and fastest and seconds < fastest and not is_noise)


def _value(variation: Variation) -> str:
    also = [name for name in variation.follows if DIMENSIONS[name].is_searched]
    layout = variation.layout
    changed = [f"{name} {str(getattr(layout, name)).lower()}" for name in also]
    return variation.value + (f" (and {', '.join(changed)})" if changed else "")


def _of_trial(best: Variation, variation: Variation) -> str:
    """The step time of its trial beside that of the best layout, or how the trial ended."""
    record = variation.record
    if record is None:
        return "not run"
    if record.outcome is not Outcome.OK:
        return record.outcome.value
    seconds = record.measurement.step_seconds
    if best.record is None:
        return number(seconds)
    if record is not best.record and equal_within_noise(best.record, record):
        return f"{number(seconds)} (equal)"
    return _beside(best.record.measurement.step_seconds, seconds)


def _beside(best: float | None, seconds: float | None) -> str:
    if best is None or seconds is None or seconds == best:
        return number(seconds)
    return f"{number(seconds)} ({seconds / best - 1:+.0%})"
