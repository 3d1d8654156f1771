"""Private temporary folders of a search, which a later search removes where this one is killed."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from autotune.errors import InputError

_PREFIX = "autotune."
_KEPT_PREFIX = "autotune-kept."
# Locked for as long as the owner lives.
_OWNER = "owner"
# Ray's logs of a long search take some ten MiB.
_LEAST_FREE_MIB = 64
# Longest path of a Unix socket on Linux, without its end.
_LONGEST_SOCKET_PATH = 107


@contextlib.contextmanager
def temporary_folder(*, keep: bool = False) -> Iterator[Path]:
    """An empty folder that only this user can enter; it is removed at the end unless `keep`.

    It is in the folder that RAY_TMPDIR or TMPDIR names, else in /tmp. Folders there of searches of
    this user that were killed are removed first. Raises InputError where none can be made.
    """
    parent = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    _remove_abandoned(parent)
    try:
        _refuse_full(parent)
        folder = Path(tempfile.mkdtemp(prefix=_KEPT_PREFIX if keep else _PREFIX, dir=parent))
        owner = _locked_file(folder)
    except OSError as error:
        raise InputError(
            f"the temporary folder (TMPDIR) must be writable, got {str(parent)!r}: {error.strerror}"
        ) from None
    with owner:
        try:
            yield folder
        finally:
            if not keep:
                _remove(folder)


def refuse_long_path(socket: Path) -> None:
    """Raise InputError where the temporary folder's path is too long for a socket in it."""
    excess = len(os.fsencode(socket)) - _LONGEST_SOCKET_PATH
    if excess > 0:
        parent = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        longest = len(os.fsencode(parent)) - excess
        raise InputError(
            f"the temporary folder (TMPDIR) must have a path of at most {longest} bytes, as Ray's "
            f"sockets are in it, got {parent!r}"
        )


def _refuse_full(parent: Path) -> None:
    free = shutil.disk_usage(parent).free / 2**20
    if free < _LEAST_FREE_MIB:
        raise InputError(
            f"the temporary folder (TMPDIR) must have at least {_LEAST_FREE_MIB} MiB free, got "
            f"{free:.1f} MiB in {str(parent)!r}"
        )


def _locked_file(folder: Path) -> TextIO:
    """The owner file, locked until it is closed; the kernel closes it when the process dies."""
    # Renamed when it is locked: another search must not find it before.
    new = folder / f"{_OWNER}.new"
    owner = new.open("w", encoding="ascii")
    owner.write(f"{os.getpid()}\n")
    owner.flush()
    with contextlib.suppress(OSError):  # a file system without locks: others will not remove it
        fcntl.flock(owner, fcntl.LOCK_EX)
    new.rename(folder / _OWNER)
    return owner


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of this user whose owner is dead."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # its owner is alive, or it has just been removed
            if folder.is_symlink() or folder.lstat().st_uid != os.getuid():
                continue
            with (folder / _OWNER).open("r+b") as owner:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)


def _remove(folder: Path) -> None:
    """Remove the folder, with the owner file last: while a process that is ending still writes
    into the folder, both stay for the next search to remove."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != _OWNER:
            entry.unlink(missing_ok=True)
    if [entry.name for entry in folder.iterdir()] == [_OWNER]:
        shutil.rmtree(folder, ignore_errors=True)
