"""The folder of a training's checkpoints, in DeepSpeed's layout. Free of torch.

    DIR/latest             the name of the newest complete checkpoint
    DIR/global_step200/    the state after 200 steps: DeepSpeed's files and training.json

A checkpoint counts once `latest` names it; that file is replaced in one step after everything else
is on the disk. So whatever ends a training, the checkpoint that `latest` names is whole.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from autotune.errors import InputError
from autotune.inputs import json_object, read_text, shown
from autotune.store.files import write_atomically
from autotune.trial.trial import TrialSpec, to_json

_LATEST = "latest"
_DESCRIPTION = "training.json"
_TAG = re.compile(r"global_step(\d{1,10})")
# How DeepSpeed has sharded the files: it reads them in the same layout only.
_SHARDING = ("tensor_parallel", "pipeline_parallel", "data_parallel", "zero_stage")


def tag_of(step: int) -> str:
    """Name of the checkpoint after so many steps."""
    return f"global_step{step}"


def latest(directory: Path) -> int | None:
    """Steps of the newest complete checkpoint; None where there is none.

    Raises InputError where `latest` names something else.
    """
    if not (directory / _LATEST).exists():
        return None
    name = read_text(directory / _LATEST).strip()
    found = _TAG.fullmatch(name)
    if found is None or not (directory / name).is_dir():
        raise InputError(f"{shown(directory / _LATEST)} must name a checkpoint, got {shown(name)}")
    return int(found[1])


def refuse_other(directory: Path, step: int, spec: TrialSpec) -> None:
    """Raise InputError where the checkpoint is of another model, layout, precision or seed, or
    where one of its files is missing or cut off."""
    folder = directory / tag_of(step)
    file = folder / _DESCRIPTION
    stored = json_object(read_text(file), what=shown(file))
    for subject, wanted in _description(spec).items():
        found = stored.get(subject)
        for name in wanted:
            if not isinstance(found, dict) or found.get(name) != wanted[name]:
                other = found.get(name) if isinstance(found, dict) else None
                raise InputError(
                    f"must be a checkpoint of the same {subject}: {name} is {shown(wanted[name])}, "
                    f"and {shown(other)} in {shown(file)}"
                )
    sizes = stored.get("bytes")
    if not isinstance(sizes, dict):
        raise InputError(f"{shown(file)} must list the checkpoint's files")
    for name, size in sizes.items():
        path = folder / Path(name).name
        if not path.is_file() or path.stat().st_size != size:
            state = f"{path.stat().st_size}" if path.is_file() else "none"
            raise InputError(f"{shown(path)} must have {size} bytes, got {state}")


def begin(directory: Path, step: int) -> None:
    """Make an empty folder for a checkpoint, and delete what interrupted saves left."""
    done = latest(directory)
    for left in _steps(directory):
        if done is None or left > done:
            shutil.rmtree(directory / tag_of(left))
    (directory / tag_of(step)).mkdir(parents=True)


def flush(directory: Path, step: int) -> None:
    """Wait until the checkpoint's files that this machine wrote are on the disk."""
    folder = directory / tag_of(step)
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def complete(directory: Path, step: int, spec: TrialSpec, *, keep: int | None) -> None:
    """Describe the checkpoint, let `latest` name it, and delete all but the newest `keep`."""
    folder = directory / tag_of(step)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    _write(folder / _DESCRIPTION, json.dumps({**_description(spec), "bytes": sizes}, indent=2))
    _write(directory / _LATEST, tag_of(step))
    if keep is not None:
        for old in _steps(directory)[:-keep]:
            shutil.rmtree(directory / tag_of(old))


def _steps(directory: Path) -> list[int]:
    """Steps of all checkpoints, complete or not, in order."""
    if not directory.exists():
        return []
    found = (_TAG.fullmatch(path.name) for path in directory.iterdir())
    return sorted(int(tag[1]) for tag in found if tag is not None)


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", "utf-8"))


def _description(spec: TrialSpec) -> dict[str, dict[str, Any]]:
    """What must be the same for a training to go on."""
    columns, model = spec.layout.columns(), to_json(spec.model)
    assert isinstance(model, dict)
    return {
        "model": model,
        "layout": {name: columns[name] for name in _SHARDING},
        "training": {"precision": spec.precision, "seed": spec.seed},
    }
