"""The figures of each step in a file of JSON lines, which goes on after a resume."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from autotune.store.files import write_atomically


@contextlib.contextmanager
def metrics_file(path: Path | None, first_step: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Open the file; yields what appends a line, at once. None: lines are dropped.

    The lines of the steps before the first are kept; those after it will be done again.
    """
    if path is None:
        yield lambda line: None
        return
    kept = _lines_before(path, first_step)
    write_atomically(path, lambda temporary: temporary.write_text("".join(kept), "utf-8"))
    with path.open("a", encoding="utf-8", buffering=1) as file:
        yield lambda line: print(json.dumps(line), file=file)


def _lines_before(path: Path, step: int) -> list[str]:
    kept: list[str] = []
    if not path.exists():
        return kept
    with path.open(encoding="utf-8") as lines, contextlib.suppress(ValueError, KeyError, TypeError):
        # The last line of a training that was killed may be cut off.
        for line in lines:
            if json.loads(line)["step"] >= step:
                break
            kept.append(line)
    return kept
