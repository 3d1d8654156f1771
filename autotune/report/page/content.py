"""What the report of a run says: sections of sentences, tables and charts, in their order."""

from autotune.report.effort import effort
from autotune.report.facts import RunFacts
from autotune.report.page import details, results
from autotune.report.page.sections import Section


def title(facts: RunFacts) -> str:
    """The title of the report."""
    return f"Layouts of {facts.space.name}, {facts.word}"


def sections(facts: RunFacts) -> list[Section]:
    """The sections of a run's report."""
    costs = effort(facts)
    parts = (
        results.best_layout(facts),
        results.what_trials_say(facts),
        results.by_dimension(facts),
        results.memory_and_time(facts),
        results.predictions(facts),
        None if costs is None else results.cost_of_search(facts, costs),
        details.pipeline(facts),
        details.causes(facts),
        details.outcomes(facts),
        details.environment(facts),
    )
    return [part for part in parts if part is not None]
