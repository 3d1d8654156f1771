"""The lock of a run directory: one search at a time uses it."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from autotune.errors import InputError
from autotune.output_paths import refuse_impossible_directory
from autotune.store.files import RUN_FILE

LOCK = ".lock"
"""Name of the file that is locked."""


@contextlib.contextmanager
def sole_user(directory: Path) -> Iterator[None]:
    """Lock a run directory. Raises InputError where another search has locked it."""
    with _lock_held(directory):
        yield


@contextlib.contextmanager
def new_directory(directory: Path) -> Iterator[None]:
    """Make and lock the directory of a new run. Raises InputError where that is not possible, and
    where the directory holds anything.

    What was made is removed again where no run was begun in it.
    """
    made = _make(directory)
    try:
        _refuse_content(directory)  # before a lock is left in a folder of something else
        with _lock_held(directory) as lock:
            try:
                _refuse_content(directory)
                yield
            finally:
                _remove_unused_lock(directory, lock)
    finally:
        with contextlib.suppress(OSError):  # it is used by now
            for folder in made:
                folder.rmdir()


def _remove_unused_lock(directory: Path, lock: int) -> None:
    with contextlib.suppress(OSError):  # the directory may have been moved away
        if os.listdir(directory) == [LOCK] and _is_at(lock, directory / LOCK):
            (directory / LOCK).unlink()


@contextlib.contextmanager
def _lock_held(directory: Path) -> Iterator[int]:
    """Lock the directory inside; yields the lock's descriptor."""
    try:
        lock = _locked(directory / LOCK)
    except BlockingIOError:
        raise InputError(f"another search is at work in {str(directory)!r}") from None
    except OSError as error:
        raise InputError(f"the run directory must be writable, and lockable: {error}") from None
    try:
        if not os.access(directory, os.W_OK):
            raise InputError(f"the run directory must be writable, got {str(directory)!r}")
        yield lock
    finally:
        os.close(lock)


def _make(directory: Path) -> list[Path]:
    """Make the directory and its missing parents; returns those made, the deepest first."""
    parents = (directory, *directory.absolute().parents)
    missing = [folder for folder in parents if not os.path.lexists(folder)]
    refuse_impossible_directory(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {str(directory)!r}: {error.strerror}") from None
    return missing


def _refuse_content(directory: Path) -> None:
    names = set(os.listdir(directory)) - {LOCK}
    if RUN_FILE in names:
        raise InputError(
            f"{str(directory)!r} already holds a run: resume it, or name another directory"
        )
    if names:
        raise InputError(f"must be empty or new, got {str(directory)!r} with files in it")


def _locked(path: Path) -> int:
    """Lock the file and return its descriptor. It is opened for reading, because a descriptor open
    for writing prevents remounting the file system read-only; on NFS, which locks only files open
    for writing, it is opened for writing."""
    for mode in (os.O_RDONLY, os.O_RDWR):
        descriptor = os.open(path, mode | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(descriptor, path):  # removed by a search that ended without a run
                raise BlockingIOError
            return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno != errno.EBADF or mode == os.O_RDWR:
                raise
    raise AssertionError("the last mode returns or raises")


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
