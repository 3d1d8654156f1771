"""Every search keeps the contract of `autotune.testing`."""

from collections.abc import Sequence

from autotune.layout import Layout
from autotune.search import SEARCHES, Prior, Search, TrialCost, make_search
from autotune.testing import SearchContract


class ByName(SearchContract):
    """A search that ships with the project."""

    name: str

    def make_search(
        self, layouts: Sequence[Layout], *, seed: int, prior: Prior | None, cost: TrialCost
    ) -> Search:
        return make_search(self.name, layouts, seed=seed, prior=prior, cost=cost)


class TestGuided(ByName):
    name = "guided"


class TestHyperopt(ByName):
    name = "hyperopt"


class TestRandom(ByName):
    name = "random"


class TestGrid(ByName):
    name = "grid"


class TestRules(ByName):
    name = "rules"


def test_every_search_is_among_the_tests() -> None:
    tested = {contract.name for contract in ByName.__subclasses__()}
    assert tested == SEARCHES.keys()
