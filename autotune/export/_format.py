"""What an export format declares, and what it makes of a layout."""

import dataclasses
from collections.abc import Callable, Mapping

from autotune.layout import Layout
from autotune.request import Request


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The files that another program reads, and what they leave out."""

    files: Mapping[str, str]
    """Content by name; names that end in .sh are made executable."""
    notes: tuple[str, ...] = ()
    """What the program cannot express, or does otherwise than the trials did: a sentence each."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """An export format. Each module of `autotune.export` declares one as `FORMAT`."""

    checked_against: str
    """The program, with the version whose own parser or fields the files were checked against."""
    export: Callable[[Layout, Request], Export]
    """Makes the files. Raises InputError for what the program would train as something else."""
    starts_trainable: bool = False
    """Whether it starts the training code of the trials. Then only the trials of a trainable that
    names it (`TrainableDescription.export_format`) can be exported to it."""
