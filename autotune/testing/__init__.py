"""Contracts that a trainable or a search must keep, as pytest classes for other packages too.

::

    from autotune.testing import TrainableContract

    class TestMine(TrainableContract):
        description = my_package.DESCRIPTION
"""

from autotune.testing.searches import SearchContract
from autotune.testing.trainables import TrainableContract

__all__ = ["SearchContract", "TrainableContract"]
