"""What the trials of a run say in words, each sentence with the trials that it rests on."""

import dataclasses
import statistics
from collections.abc import Iterable, Iterator
from typing import Any

from autotune.layout import DIMENSIONS, Layout
from autotune.ledger.ranking import equal_within_noise
from autotune.report.facts import RunFacts, counted_as, dimension_label, value_word
from autotune.store.record import TrialRecord
from autotune.trial.trial import Outcome

# Below this ratio of step times two values count as equally fast.
_EQUAL = 1.02
_MOST_TRIALS_NAMED = 6
# Out-of-memory trials are worth a sentence where a value has at least so many, and this share.
_FEWEST_OUT_OF_MEMORY = 3
_MOSTLY = 0.75


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A sentence and the trials that it rests on."""

    sentence: str
    trials: tuple[str, ...]
    """Numbers of the trials."""

    @property
    def basis(self) -> str:
        """The trials as text."""
        shown = ", ".join(self.trials[:_MOST_TRIALS_NAMED])
        more = len(self.trials) - _MOST_TRIALS_NAMED
        return f"trial{'' if len(self.trials) == 1 else 's'} {shown}" + (
            f" and {more} more" if more > 0 else ""
        )


def advice(facts: RunFacts) -> list[Advice]:
    """What the run's own trials say; layouts that failed their longer trial count as failed."""
    sentences = [*_equal(facts), *_failed(facts)]
    if facts.sound:
        for dimension in facts.varied:
            sentences += _pairs_of(facts, dimension)
        sentences += _without_pairs(facts)
    sentences += _out_of_memory(facts)
    if facts.sound:
        sentences += [*_memory_left(facts), *_edges(facts)]
    return [*sentences, *_prediction(facts)]


def _equal(facts: RunFacts) -> Iterator[Advice]:
    equal = facts.equal_to_best
    if facts.best is not None and equal:
        trials = [facts.best, *equal]
        others = "1 other layout is" if len(equal) == 1 else f"{len(equal)} other layouts are"
        yield _advice(
            f"{others} as fast as the best one within the noise of the steps: choose among them by "
            "memory or simplicity.",
            trials,
        )


def _failed(facts: RunFacts) -> Iterator[Advice]:
    """Layouts that were faster than the best in their exploring trial and failed the longer one."""
    best = facts.best
    if best is None:
        return
    faster = [
        record
        for record in facts.worked
        if record.layout in facts.failed
        and record.layout != best.layout
        and _seconds(record) < _seconds(best)
    ]
    if faster:
        outcomes = " or ".join(sorted({facts.outcome_of(record).value for record in faster}))
        yield _advice(
            f"{counted_as(len(faster), 'layout')} that ran faster in the first trial ended as "
            f"{outcomes} in the longer one, and did not count.",
            faster,
        )


def _others(facts: RunFacts, dimension: str) -> list[Any]:
    """The values with which layouts worked, but that of the best layout."""
    chosen = getattr(facts.sound[0].layout, dimension)
    return sorted({getattr(r.layout, dimension) for r in facts.sound} - {chosen}, key=str)


def _pairs_of(facts: RunFacts, dimension: str) -> Iterator[Advice]:
    """How the best layout's value compares with others in pairs that differ in nothing else."""
    best = facts.sound[0]
    chosen = getattr(best.layout, dimension)
    for other in _others(facts, dimension):
        pairs = _pairs(facts.sound, dimension, chosen, other)
        if not pairs:
            continue
        word = value_word(pairs[0][1].layout, dimension)
        ratio = statistics.median(_seconds(b) / _seconds(a) for a, b in pairs)
        noise = sum(equal_within_noise(a, b) for a, b in pairs) > len(pairs) / 2
        compared = f"as fast as {word}, within the noise" if noise else _compared(ratio, word)
        yield _advice(
            f"{_with_value(best.layout, dimension)}: {compared}, in "
            f"{counted_as(len(pairs), 'pair')} of trials that differ in nothing else.",
            [record for pair in pairs for record in pair],
        )


def _without_pairs(facts: RunFacts) -> Iterator[Advice]:
    """The best layout beside the fastest with each other value that no pair compares. A layout that
    is the fastest with several such values makes one sentence; one that is as fast within the noise
    makes none, as `_equal` names it."""
    best = facts.sound[0]
    by_rival: dict[str, list[str]] = {}
    rivals: dict[str, TrialRecord] = {}
    for dimension in facts.varied:
        if DIMENSIONS[dimension].is_implementation:
            continue
        chosen = getattr(best.layout, dimension)
        for other in _others(facts, dimension):
            rival = next(r for r in facts.sound if getattr(r.layout, dimension) == other)
            has_pairs = bool(_pairs(facts.sound, dimension, chosen, other))
            if not has_pairs and not equal_within_noise(best, rival):
                rivals[rival.trial_id] = rival
                by_rival.setdefault(rival.trial_id, []).append(dimension)
    for trial_id, dimensions in by_rival.items():
        rival = rivals[trial_id]
        own = ", ".join(_with_value(best.layout, name) for name in dimensions)
        theirs = ", ".join(_with_value(rival.layout, name) for name in dimensions)
        more = " They differ in more than that." if _differ_in_more(best, rival, dimensions) else ""
        yield _advice(
            f"The best layout ({own}) takes "
            f"{_compared(_seconds(rival) / _seconds(best), f'the fastest with {theirs}')}.{more}",
            [best, rival],
        )


def _differ_in_more(best: TrialRecord, rival: TrialRecord, dimensions: list[str]) -> bool:
    return any(
        getattr(best.layout, name) != getattr(rival.layout, name)
        for name, declared in DIMENSIONS.items()
        if declared.is_searched and name not in dimensions
    )


def _pairs(
    records: Iterable[TrialRecord], dimension: str, chosen: object, other: object
) -> list[tuple[TrialRecord, TrialRecord]]:
    """Pairs of trials with the one and the other value that agree in all further dimensions but
    those that follow from them."""

    def rest(layout: Layout) -> tuple[object, ...]:
        return tuple(
            getattr(layout, name)
            for name, declared in DIMENSIONS.items()
            if name != dimension and declared.is_searched
        )

    of_other = {rest(r.layout): r for r in records if getattr(r.layout, dimension) == other}
    return [
        (record, of_other[rest(record.layout)])
        for record in records
        if getattr(record.layout, dimension) == chosen and rest(record.layout) in of_other
    ]


def _out_of_memory(facts: RunFacts) -> Iterator[Advice]:
    """Values that mostly ran out of memory; those of the same trials in one sentence."""
    found: dict[tuple[str, ...], list[tuple[str, int, float]]] = {}
    for dimension in facts.varied:
        for value in sorted({getattr(r.layout, dimension) for r in facts.explored}, key=str):
            having = [r for r in facts.explored if getattr(r.layout, dimension) == value]
            failed = [r for r in having if facts.outcome_of(r) is Outcome.OOM]
            rest = [r for r in facts.explored if getattr(r.layout, dimension) != value]
            elsewhere = sum(facts.outcome_of(r) is Outcome.OOM for r in rest) / len(rest)
            enough = len(failed) >= _FEWEST_OUT_OF_MEMORY
            share = len(failed) / len(having)
            if enough and share >= _MOSTLY and share >= 1.5 * elsewhere:
                trials = tuple(record.trial_id for record in failed)
                named = (_with_value(having[0].layout, dimension), len(having), elsewhere)
                found.setdefault(trials, []).append(named)
    for trials, values in found.items():
        names = " and ".join(name for name, _, _ in values)
        counts = f"{len(trials)} of {values[0][1]} trials"
        each = "" if len(values) == 1 else ", the same trials for each"
        others = ", ".join(dict.fromkeys(f"{elsewhere:.0%}" for _, _, elsewhere in values))
        yield Advice(
            sentence=f"{names} ran out of memory in {counts}{each}; other values in {others}.",
            trials=trials,
        )


def _with_value(layout: Layout, dimension: str) -> str:
    return f"{dimension_label(dimension)} {value_word(layout, dimension)}"


def _memory_left(facts: RunFacts) -> Iterator[Advice]:
    assert facts.best is not None
    peak, limit = facts.best.measurement.peak_memory_gib, facts.memory_limit_gib
    if peak is None or limit is None:
        return
    share = peak / limit
    if share > 0.95:
        yield _advice(
            f"The best layout uses {share:.0%} of the memory limit: longer sequences or a larger "
            "evaluation batch may not fit.",
            [facts.best],
        )
    elif share < 0.6:
        yield _advice(
            f"The best layout uses {share:.0%} of the memory limit: memory does not limit it.",
            [facts.best],
        )


def _edges(facts: RunFacts) -> Iterator[Advice]:
    """Sizes of the best layout that are the largest which the space allows."""
    assert facts.best is not None
    for dimension in facts.varied:
        allowed = getattr(facts.space, dimension, None)
        numbers = [v for v in allowed or () if isinstance(v, int) and not isinstance(v, bool)]
        value = getattr(facts.best.layout, dimension)
        if dimension == "micro_batch_size" and len(numbers) > 1 and value == max(numbers):
            yield _advice(
                f"{dimension_label(dimension)} {value} is the largest that the space allows: a "
                "larger one may be faster.",
                [facts.best],
            )


def _prediction(facts: RunFacts) -> Iterator[Advice]:
    predicted = [
        (r, abs(r.prediction.step_seconds / _seconds(r) - 1))
        for r in facts.worked
        if r.prediction is not None
    ]
    if predicted:
        middle = statistics.median(error for _, error in predicted)
        yield _advice(
            f"Predicted step times, corrected by the trials before, were within {middle:.1%} "
            "(median) of those of the trials.",
            [record for record, _ in predicted],
        )


def _compared(ratio: float, other: str) -> str:
    """One's own step time beside another one's, given the other's over one's own."""
    if 1 / _EQUAL < ratio < _EQUAL:
        return f"as much time per step (within 2 %) as {other}"
    if ratio > 1:
        return f"{1 - 1 / ratio:.0%} less time per step than {other}"
    return f"{1 / ratio - 1:.0%} more time per step than {other}"


def _seconds(record: TrialRecord) -> float:
    seconds = record.measurement.step_seconds
    assert seconds is not None, "of trials that worked"
    return seconds


def _advice(sentence: str, records: Iterable[TrialRecord]) -> Advice:
    numbers = dict.fromkeys(record.trial_id for record in records)
    return Advice(sentence=sentence, trials=tuple(numbers))
