"""What a rank prints, kept in a file up to a limit; a rank never waits or fails for it."""

import contextlib
import os
from pathlib import Path

_LARGEST_BYTES = 16 * 2**20
_CHUNK_BYTES = 2**16
# A pipe holds no more than this many; more can only come from what outlives its rank.
_PIECES_IN_A_PIPE = 16


class RankLog:
    """A pipe that the rank writes, and the file that its owner copies it into."""

    def __init__(self, directory: str | None, rank: int) -> None:
        """`directory` None copies to this process's standard error, without a limit."""
        self.read_fd, self.write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        self._file = 2
        self._left: float = float("inf")
        self._dropped = 0
        if directory is not None:
            self._left = _LARGEST_BYTES
            self._file = _opened(Path(directory), f"rank-{rank}.log")

    def close_write_end(self) -> None:
        """The rank has its copy."""
        os.close(self.write_fd)

    def copy(self) -> bool:
        """Take a piece of what there is; False once the rank has closed its end."""
        try:
            piece = os.read(self.read_fd, _CHUNK_BYTES)
        except BlockingIOError:
            return True
        kept = piece[: int(min(self._left, len(piece)))]
        self._left -= len(kept)
        self._dropped += len(piece) - len(kept)
        with contextlib.suppress(OSError):  # a full disk is no fault of the layout
            os.write(self._file, kept)
        return bool(piece)

    def close(self) -> None:
        """Take what is left in the pipe, and say how much was left out."""
        for _ in range(_PIECES_IN_A_PIPE):
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
    except OSError:  # as above
        return os.open(os.devnull, os.O_WRONLY)
