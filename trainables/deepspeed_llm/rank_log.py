"""Copies the output of a rank into a log file of limited size, without blocking the rank."""

import contextlib
import os
from pathlib import Path

_LARGEST_BYTES = 16 * 2**20
_CHUNK_BYTES = 2**16
# A pipe holds at most this many chunks; more can only come from children that outlive the rank.
_CHUNKS_IN_A_PIPE = 16


class RankLog:
    """A pipe that the rank writes to, and the log file that the host process copies it into."""

    def __init__(self, directory: str | None, rank: int) -> None:
        """`directory`: where to put the log file; None: copy to stderr, without a limit."""
        self.read_fd, self.write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        self._file = 2
        self._left: float = float("inf")
        self._dropped = 0
        if directory is not None:
            self._left = _LARGEST_BYTES
            self._file = _opened(Path(directory), f"rank-{rank}.log")

    def close_write_end(self) -> None:
        """Close this process's copy of the write end, after the rank was forked."""
        os.close(self.write_fd)

    def copy(self) -> bool:
        """Copy one chunk, if there is one; False at end of file."""
        try:
            chunk = os.read(self.read_fd, _CHUNK_BYTES)
        except BlockingIOError:
            return True
        kept = chunk[: int(min(self._left, len(chunk)))]
        self._left -= len(kept)
        self._dropped += len(chunk) - len(kept)
        with contextlib.suppress(OSError):  # a full disk must not fail the trial
            os.write(self._file, kept)
        return bool(chunk)

    def close(self) -> None:
        """Copy the rest of the pipe and note how many bytes were dropped."""
        for _ in range(_CHUNKS_IN_A_PIPE):
            if not self.copy():
                break
        if self._dropped:
            with contextlib.suppress(OSError):
                os.write(self._file, f"\n[{self._dropped} more bytes were left out]\n".encode())
        os.close(self.read_fd)
        if self._file > 2:
            os.close(self._file)


def _opened(directory: Path, name: str) -> int:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:  # a full disk must not fail the trial
        return os.open(os.devnull, os.O_WRONLY)
