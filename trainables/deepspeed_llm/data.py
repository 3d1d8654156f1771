"""Training tokens: bytes of memory-mapped text files, or random; every layout gets the same."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from autotune.errors import InputError


class TokenSource(Protocol):
    """An endless stream of tokens with random access."""

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count) as int64."""


class TextTokens:
    """The bytes of all files in a row, repeated endlessly; each byte is a token."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Memory-map the files, in the order given. Raises InputError if all are empty."""
        try:
            maps = [np.memmap(f, dtype=np.uint8, mode="r") for f in files if f.stat().st_size]
        except OSError as error:
            raise InputError(f"data: cannot read: {error}") from None
        if not maps:
            raise InputError("data: needs at least one byte of text, got none")
        self._maps = maps
        self._ends = list(itertools.accumulate(len(part) for part in maps))

    def read(self, start: int, count: int) -> np.ndarray:
        tokens = np.empty(count, dtype=np.int64)
        filled = 0
        while filled < count:
            position = (start + filled) % self._ends[-1]
            index = int(np.searchsorted(self._ends, position, side="right"))
            part = self._maps[index]
            offset = position - (self._ends[index] - len(part))
            taken = min(count - filled, len(part) - offset)
            tokens[filled : filled + taken] = part[offset : offset + taken]
            filled += taken
        return tokens


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


def batch_slice(
    source: TokenSource,
    step: int,
    *,
    global_batch_size: int,
    sequence_length: int,
    replica: int,
    replicas: int,
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one replica, both [global_batch_size / replicas, sequence_length].

    The global batch depends only on the step. Each replica gets a contiguous part of it.
    """
    sequences = global_batch_size // replicas
    first = step * global_batch_size + replica * sequences
    rows = [
        source.read((first + row) * sequence_length, sequence_length + 1)
        for row in range(sequences)
    ]
    tokens = torch.from_numpy(np.stack(rows))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
