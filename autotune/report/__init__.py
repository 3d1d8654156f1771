"""What people look at."""

from autotune.report.messages import print_dry_run, print_end, print_start, say_what_it_is
from autotune.report.screen import Screen

__all__ = ["Screen", "print_dry_run", "print_end", "print_start", "say_what_it_is"]
