"""Trials as rows of a table."""

from autotune.report.facts import number, percent
from autotune.store.record import TrialRecord

COLUMNS = (
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
"""Headings of the columns."""
NUMERIC = frozenset({"s per step", "IQR", "MFU", "tokens/s/GPU", "GiB"})
"""Those that hold numbers."""


def trial_row(record: TrialRecord) -> list[str]:
    """The cells of a trial; a dash where nothing was measured."""
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
