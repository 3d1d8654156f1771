"""Output for the terminal, and `step`, by which a training script reports to the tuner.

Each name is imported on first use: a training script has no need of what the terminal needs.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.report.messages import dry_run as dry_run
    from autotune.report.messages import print_dry_run as print_dry_run
    from autotune.report.messages import print_end as print_end
    from autotune.report.screen import Screen as Screen
    from autotune.report.steps import step as step

# Public names and the module each is defined in.
_PUBLIC = {
    "Screen": "screen",
    "dry_run": "messages",
    "print_dry_run": "messages",
    "print_end": "messages",
    "step": "steps",
}
__all__ = tuple(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
