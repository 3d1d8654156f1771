"""Functions for tests that read the log of the test script."""

import re


def read(line: str) -> dict[str, float] | None:
    match = re.search(r"elapsed ms: ([\d.]+) \| loss: (\S+)", line)
    return match and {"step_seconds": float(match[1]) / 1000, "loss": float(match[2])}


def raises(line: str) -> None:
    1 / 0  # noqa: B018


def returns_text(line: str) -> str:
    return "fast"
