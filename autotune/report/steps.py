"""For training scripts: report a step to the tuner.

Needs nothing but Python's standard library, and does nothing where no tuner runs the script::

    from autotune.report import step

    step(step_seconds=seconds, loss=loss, peak_memory_gib=memory)
"""

import json
import os

VARIABLE = "AUTOTUNE_STEPS"
"""Environment variable with the path of what steps are reported into."""


def step(
    *,
    step_seconds: float | None = None,
    tokens_per_second: float | None = None,
    loss: float | None = None,
    grad_norm: float | None = None,
    peak_memory_gib: float | None = None,
) -> None:
    """Report one optimiser step, right after it, from one rank or from each: ranks are told apart
    by the variable RANK, and the first one to report a step is heard.

    `step_seconds` is its wall time between synchronisations; where only `tokens_per_second` is
    known, of all devices together, that will do. `loss` is the mean over the global batch,
    `peak_memory_gib` the peak so far on this device.
    """
    path = os.environ.get(VARIABLE)
    if path is None:
        return
    figures = {
        "step_seconds": step_seconds,
        "tokens_per_second": tokens_per_second,
        "loss": loss,
        "grad_norm": grad_norm,
        "peak_memory_gib": peak_memory_gib,
    }
    given = {name: float(value) for name, value in figures.items() if value is not None}
    given["rank"] = int(os.environ.get("RANK", "0"))
    # One short write, so that lines of several ranks do not mix.
    with open(path, "ab", buffering=0) as steps:
        steps.write(json.dumps(given).encode() + b"\n")
