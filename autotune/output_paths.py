"""Whether something new can be made at a path: told before hours are spent on it.

The file system is asked by making something there and removing it again. Permissions alone do not
tell: `/proc` and exported file systems look writable to root.
"""

import os
import stat
import tempfile
from pathlib import Path

from autotune.errors import InputError
from autotune.inputs import kind_of_file, shown

_PREFIX = ".autotune-"


def refuse_impossible_directory(path: Path) -> None:
    """Raise InputError where no directory can be made at the path, parents included.

    Where the path is a directory, things must be possible to make in it.
    """
    existing = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    try:
        status = os.stat(existing)
    except OSError as error:  # of a symbolic link
        raise InputError(
            f"must not lead through a broken symbolic link, got {shown(path)} "
            f"({shown(existing)}: {error.strerror})"
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise InputError(
            f"must be a new directory, got {shown(path)} where {shown(existing)} is "
            f"{kind_of_file(status)}"
        )
    try:
        os.rmdir(tempfile.mkdtemp(prefix=_PREFIX, dir=existing))
    except OSError as error:
        raise InputError(
            f"must be below a writable directory, got {shown(path)} "
            f"({shown(existing)}: {error.strerror})"
        ) from None


def refuse_impossible_file(path: Path) -> None:
    """Raise InputError where no file can be written at the path, in the place of one that is there.

    Its directory must exist.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"must be in a directory that exists, got {shown(path)}")
    if path.exists() and not path.is_file():
        raise InputError(f"must be a file, got {kind_of_file(os.stat(path))} {shown(path)}")
    try:
        with tempfile.NamedTemporaryFile(prefix=_PREFIX, dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"must be in a writable directory, got {shown(path)} ({error.strerror})"
        ) from None
