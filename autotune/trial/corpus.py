"""Files of the training text. Free of torch, so that both command lines can check them."""

import os
import sysconfig
from pathlib import Path

from autotune.errors import InputError
from autotune.model import Model

_BYTE_VALUES = 256


def text_files(data: str | None) -> list[Path]:
    """The file, the files below the folder, or Python's own library sources for None.

    Raises InputError where they cannot be read, or are all empty.
    """
    if data is None:
        return sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    path = Path(data)
    try:
        if not data or not path.exists():
            raise InputError(f"no such file or folder: {data!r}", field="data")
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        sizes = [file.stat().st_size for file in files]
    except OSError as error:
        raise InputError(f"cannot read {data!r}: {error.strerror}", field="data") from None
    if unreadable := [file for file in files if not os.access(file, os.R_OK)]:
        raise InputError(f"cannot read {str(unreadable[0])!r}: Permission denied", field="data")
    if not any(sizes):
        raise InputError(f"must hold at least one byte of text, got none in {data!r}", field="data")
    return files


def check_data(data: str | None, *, synthetic: bool, model: Model) -> None:
    """Raise InputError where the model cannot be trained on that data."""
    if synthetic:
        if data is not None:
            raise InputError(f"must not be given with `synthetic_data`, got {data!r}", field="data")
        return
    text_files(data)
    if model.vocab_size < _BYTE_VALUES:
        raise InputError(
            f"vocab_size must be at least {_BYTE_VALUES} for bytes of text, got "
            f"{model.vocab_size} (or train on `synthetic_data`)"
        )
