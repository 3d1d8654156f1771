"""What people look at."""

from autotune.report.screen import Screen, print_best, print_plan

__all__ = ["Screen", "print_best", "print_plan"]
