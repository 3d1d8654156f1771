"""Files of the training text. Free of torch, so that both command lines can check them."""

import os
import stat
import sysconfig
from pathlib import Path

from autotune.errors import InputError, in_field
from autotune.inputs import kind_of_file, shown
from autotune.model import Model

_BYTE_VALUES = 256


def text_files(data: str | None) -> list[Path]:
    """The file, the files below the folder, or Python's own library sources for None.

    Raises InputError where they cannot be read, are all empty, or are no files: what a FIFO, a
    socket or a device gives is not the same every time.
    """
    if data is None:
        return sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    with in_field("data"):
        return files_below(data)


def files_below(data: str) -> list[Path]:
    """The file, or the files below the folder. Raises InputError without a field."""
    path = Path(data)
    try:
        if not data or not path.exists():
            raise InputError(f"no such file or folder: {shown(data)}")
        found = _walked(path) if path.is_dir() else [path]
        files = {file: file.stat() for file in found}
    except OSError as error:
        raise InputError(f"cannot read {shown(error.filename or data)}: {error.strerror}") from None
    for file, status in files.items():
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"must hold files only, got {kind_of_file(status)}: {shown(file)}")
        if not os.access(file, os.R_OK):
            raise InputError(f"cannot read {shown(file)}: Permission denied")
    if not any(status.st_size for status in files.values()):
        raise InputError(f"must hold at least one byte of text, got none in {shown(data)}")
    return list(files)


def _walked(folder: Path) -> list[Path]:
    """All files below the folder, sorted. Raises OSError for a folder that cannot be read."""

    def fail(error: OSError) -> None:
        raise error

    below = os.walk(folder, onerror=fail)
    return sorted(Path(parent, name) for parent, _, names in below for name in names)


def check_data(data: str | None, *, synthetic: bool, model: Model) -> None:
    """Raise InputError where the model cannot be trained on that data."""
    if synthetic:
        if data is not None:
            raise InputError(
                f"must not be given with `synthetic_data`, got {shown(data)}", field="data"
            )
        return
    text_files(data)
    if model.vocab_size < _BYTE_VALUES:
        raise InputError(
            f"vocab_size must be at least {_BYTE_VALUES} for bytes of text, got "
            f"{model.vocab_size} (or train on `synthetic_data`)"
        )
