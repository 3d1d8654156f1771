"""Output for the terminal."""

from autotune.report.messages import dry_run, print_dry_run, print_end
from autotune.report.screen import Screen

__all__ = ["Screen", "dry_run", "print_dry_run", "print_end"]
