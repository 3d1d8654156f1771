"""Recipes of the test script."""

import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent.parent


def recipe(behaviour: str = "trains", **changes: Any) -> dict[str, Any]:
    """The values of a recipe for one process per rank, which reports its steps itself."""
    return {
        "argv": [sys.executable, "script.py", behaviour, "{micro_batch_size}"],
        "processes": "rank",
        "directory": str(FOLDER),
        "env": {"PYTHONPATH": str(ROOT)},
        **changes,
    }
