"""Words in braces that stand for values of a trial in a command's arguments and files."""

import re
import string
from collections.abc import Mapping
from typing import Any

from autotune.inputs import listed, shown
from autotune.layout import LAYOUT_COLUMNS, Layout
from autotune.trial.trial import TrialSpec

OF_TRIAL = (
    "trial_id",
    "steps",
    "precision",
    "seed",
    "world_size",
    "nodes",
    "devices_per_node",
    "global_batch_size",
    "replica_batch_size",
    "sequence_length",
    "log_directory",
)
"""Placeholders with the same value in all processes of a trial."""
OF_PROCESS = (
    "rank",
    "local_rank",
    "node_rank",
    "master_addr",
    "master_port",
    "scratch_directory",
)
"""Placeholders with a value of their own in each process."""
PLACEHOLDERS = (*LAYOUT_COLUMNS, *OF_TRIAL, *OF_PROCESS)
"""Words that may stand in braces in arguments and environment variables."""

IN_TEXT = re.compile(rf"\{{({'|'.join(PLACEHOLDERS)})\}}")
"""A placeholder in a text that may have braces of its own."""


def placeholder_values(spec: TrialSpec, process: Mapping[str, Any]) -> dict[str, Any]:
    """The values of PLACEHOLDERS; `process` has those of OF_PROCESS."""
    layout: Layout = spec.layout
    nodes = -(-layout.world_size // spec.cluster.gpus_per_node)
    return {
        **{column: getattr(layout, column) for column in LAYOUT_COLUMNS},
        "trial_id": spec.trial_id,
        "steps": spec.steps,
        "precision": spec.precision,
        "seed": spec.seed,
        "world_size": layout.world_size,
        "nodes": nodes,
        "devices_per_node": layout.world_size // nodes,
        "global_batch_size": spec.model.global_batch_size,
        "replica_batch_size": spec.model.global_batch_size // layout.data_parallel,
        "sequence_length": spec.model.sequence_length,
        "log_directory": spec.log_dir,
        **process,
    }


def placeholders_in(word: str, where: str) -> list[str]:
    """Words in braces, in order; `where` names the field. Raises ValueError for odd braces."""
    try:
        parsed = list(string.Formatter().parse(word))
    except ValueError as error:
        raise ValueError(f"{where} must have paired braces ({error}), got {shown(word)}") from None
    names = []
    for _, name, form, conversion in parsed:
        if form or conversion:
            raise ValueError(f"{where} must have plain placeholders, got {shown(word)}")
        if name is not None:
            names.append(name)
    return names


def check_placeholder(name: str, where: str) -> None:
    """Raise ValueError where the name is none of PLACEHOLDERS."""
    if name not in PLACEHOLDERS:
        raise ValueError(
            f"{where} must have placeholders among {listed(PLACEHOLDERS)}, got {shown(name)}"
        )
