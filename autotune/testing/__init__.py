"""Contract tests of trainables and searches, as pytest base classes for any package.

::

    from autotune.testing import TrainableContract

    class TestMine(TrainableContract):
        description = my_package.DESCRIPTION
"""

from autotune.testing.searches import SearchContract
from autotune.testing.trainables import TrainableContract

__all__ = ["SearchContract", "TrainableContract"]
