"""Training samples in shuffled order, determined by the seed alone. Free of torch."""

import functools

import numpy as np

from autotune.errors import InputError, in_field
from trainables.deepspeed_llm.tokens import ArrayTokens, Samples
from trainables.deepspeed_llm.training.token_files import check_ids


class Shuffled:
    """The samples of a stream of tokens, each once per epoch, in another order every epoch.

    Neighbouring samples share one token: the last target of one is the first input of the next.
    """

    def __init__(self, tokens: ArrayTokens, sequence_length: int, seed: int) -> None:
        """Raises InputError where there are too few tokens for a sample."""
        self._tokens, self._length, self._seed = tokens, sequence_length, seed
        self._count = (len(tokens) - 1) // sequence_length
        if not self._count:
            raise InputError(
                f"must have at least sequence_length + 1 = {sequence_length + 1} tokens, got "
                f"{len(tokens)}",
                field="data",
            )
        # A global batch may reach into the next epoch.
        self._order = functools.lru_cache(maxsize=2)(self._order_of_epoch)

    def sample(self, index: int) -> np.ndarray:
        epoch, position = divmod(index, self._count)
        start = int(self._order(epoch)[position]) * self._length
        return self._tokens.read(start, self._length + 1)

    def _order_of_epoch(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(self._count)


class InVocabulary:
    """Refuses samples with token ids that the model does not have."""

    def __init__(self, samples: Samples, vocab_size: int, field: str) -> None:
        self._samples, self._vocab_size, self._field = samples, vocab_size, field

    def sample(self, index: int) -> np.ndarray:
        tokens = self._samples.sample(index)
        with in_field(self._field):
            check_ids(tokens, self._vocab_size)
        return tokens
