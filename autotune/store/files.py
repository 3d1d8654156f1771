"""Files of a run directory: atomic writes, a digest in each file, and no links that lead out.

The digest is the SHA-256 of the file's bytes with the 64 digits of the digest itself taken as
zeros. So it protects every bit of the file, and is checked before anything is parsed.
"""

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from autotune.errors import InputError

RUN_FILE = "run.json"
DIGEST = "sha256"
"""Name under which a file holds its digest: a JSON key, or a key of Parquet's metadata."""
BLANK_DIGEST = "0" * 64
"""What is written in the digest's place before `sealed`."""

# Folders of the run directory that are never read: the logs of the trials, each written once into a
# new folder, and those of experiment trackers (wandb has links to logs of its own elsewhere).
_NOT_READ = frozenset({"logs", "tensorboard", "mlruns", "wandb"})
# Two to four bytes lie between name and digest, both in JSON and in Parquet's footer.
_DIGEST = re.compile(DIGEST.encode() + rb"[^0-9a-f]{2,4}([0-9a-f]{64})")
_TEMPORARY_NAME = ".{name}.{pid}.tmp"
_TEMPORARY = _TEMPORARY_NAME.format(name="*", pid="*")


def sealed(content: bytes) -> bytes:
    """The content of a new file with its digest in the place of `BLANK_DIGEST`."""
    start, end = _digest_place(content)
    return content[:start] + _digest(content, start, end) + content[end:]


def check_digest(content: bytes, *, required: bool) -> None:
    """Raise ValueError where the content does not match its digest, or has none although
    `required` (files of version 0.1 have none)."""
    try:
        start, end = _digest_place(content)
    except ValueError:
        if required:
            raise
        return
    if content[start:end] != _digest(content, start, end):
        raise ValueError(f"its content does not match its {DIGEST}: it was changed or damaged")


def _digest_place(content: bytes) -> tuple[int, int]:
    # The last one, because a reason or a path could contain such text, too.
    places = [found.span(1) for found in _DIGEST.finditer(content)]
    if not places:
        raise ValueError(f"its {DIGEST} is missing: it was changed or damaged")
    return places[-1]


def _digest(content: bytes, start: int, end: int) -> bytes:
    digest = hashlib.sha256(content[:start])
    digest.update(BLANK_DIGEST.encode())
    digest.update(content[end:])
    return digest.hexdigest().encode()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary file, then replace `path` by that file in one step."""
    temporary = path.with_name(_TEMPORARY_NAME.format(name=path.name, pid=os.getpid()))
    try:
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # on a file system that became read-only
            temporary.unlink(missing_ok=True)


def remove_temporary_files(directory: Path) -> None:
    """Delete what searches left that were killed while they wrote into the directory."""
    for folder in (directory, *_folders(directory)):
        for file in folder.glob(_TEMPORARY):
            with contextlib.suppress(OSError):
                file.unlink()


def refuse_unsafe_entries(directory: Path) -> None:
    """Raise InputError for a link that leads out of the directory, and for an entry that is neither
    a file nor a folder: reading a named pipe would wait for ever."""
    inside = directory.resolve()
    for folder in (directory, *_folders(directory)):
        for entry in folder.iterdir():
            mode = entry.lstat().st_mode
            if stat.S_ISLNK(mode):
                if not entry.resolve().is_relative_to(inside):
                    raise InputError(
                        f"{str(entry)!r} must not be a link that leads out of the run directory, "
                        f"got one to {str(entry.readlink())!r}"
                    )
            elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise InputError(f"{str(entry)!r} must be a file or a folder")


def _folders(directory: Path) -> Iterator[Path]:
    """The folders of a run directory. Those in `_NOT_READ` are left out."""
    for folder, folders, _ in os.walk(directory):
        if Path(folder).parent == directory and Path(folder).name in _NOT_READ:
            folders.clear()
        yield from (Path(folder, name) for name in folders)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
