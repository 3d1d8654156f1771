"""Training tokens: arrays such as memory-mapped files, or random. Free of torch."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from autotune.errors import InputError


class TokenSource(Protocol):
    """An endless stream of tokens with random access."""

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count) as int64."""


class Samples(Protocol):
    """An endless row of training samples with random access."""

    def sample(self, index: int) -> np.ndarray:
        """The tokens of a sample and the one after them: [sequence_length + 1], int64."""


class ArrayTokens:
    """Arrays of token ids in a row, repeated endlessly."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        """`parts`: arrays of one dimension, of any integer type, none of them empty."""
        self._parts = parts
        self._ends = list(itertools.accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        """Number of tokens before they repeat."""
        return self._ends[-1]

    def read(self, start: int, count: int) -> np.ndarray:
        tokens = np.empty(count, dtype=np.int64)
        filled = 0
        while filled < count:
            position = (start + filled) % self._ends[-1]
            index = int(np.searchsorted(self._ends, position, side="right"))
            part = self._parts[index]
            offset = position - (self._ends[index] - len(part))
            taken = min(count - filled, len(part) - offset)
            tokens[filled : filled + taken] = part[offset : offset + taken]
            filled += taken
        return tokens


class TextTokens(ArrayTokens):
    """The bytes of all files in a row; each byte is a token."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Memory-map the files, in the order given. Raises InputError if all are empty."""
        try:
            maps = [np.memmap(f, dtype=np.uint8, mode="r") for f in files if f.stat().st_size]
        except OSError as error:
            raise InputError(f"data: cannot read: {error}") from None
        if not maps:
            raise InputError("data: needs at least one byte of text, got none")
        super().__init__(maps)


class SyntheticTokens:
    """Uniformly random tokens, determined by seed and position."""

    _BLOCK = 4096

    def __init__(self, vocab_size: int, seed: int) -> None:
        self._vocab_size = vocab_size
        self._seed = seed

    def read(self, start: int, count: int) -> np.ndarray:
        first, last = start // self._BLOCK, (start + count - 1) // self._BLOCK
        blocks = [self._block(index) for index in range(first, last + 1)]
        offset = start - first * self._BLOCK
        return np.concatenate(blocks)[offset : offset + count]

    def _block(self, index: int) -> np.ndarray:
        generator = np.random.default_rng((self._seed, index))
        return generator.integers(self._vocab_size, size=self._BLOCK, dtype=np.int64)


class InOrder:
    """The samples of a stream of tokens, one after the other."""

    def __init__(self, source: TokenSource, sequence_length: int) -> None:
        self._source, self._length = source, sequence_length

    def sample(self, index: int) -> np.ndarray:
        return self._source.read(index * self._length, self._length + 1)
