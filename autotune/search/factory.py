"""Makes searches by their name on the command line."""

from collections.abc import Callable, Sequence

from autotune.errors import InputError
from autotune.inputs import shown
from autotune.layout import Layout
from autotune.search.guided import GuidedSearch, TrialCost
from autotune.search.ordered import OrderedSearch, in_order_of_advice, in_random_order
from autotune.search.prior import Prior
from autotune.search.protocol import Search
from autotune.search.tpe import TpeSearch

_Maker = Callable[[Sequence[Layout], int, Prior | None, TrialCost], Search]


def _guided(
    layouts: Sequence[Layout], seed: int, prior: Prior | None, cost: TrialCost
) -> GuidedSearch:
    if prior is None:
        raise InputError("guided needs a device that the cost model knows", field="search")
    return GuidedSearch(prior, cost, seed)


SEARCHES: dict[str, _Maker] = {
    "guided": _guided,
    "hyperopt": lambda layouts, seed, prior, cost: TpeSearch(layouts, seed, prior),
    "random": lambda layouts, seed, prior, cost: OrderedSearch(
        in_random_order(layouts, seed), prior
    ),
    "grid": lambda layouts, seed, prior, cost: OrderedSearch(layouts, prior),
    "rules": lambda layouts, seed, prior, cost: OrderedSearch(
        in_order_of_advice(layouts, seed), prior
    ),
}
"""Functions that make a search, by its name on the command line."""


NEED_PRIOR = frozenset({"guided"})
"""Searches that need the cost model's predictions."""
WITHOUT_PRIOR = "hyperopt"
"""The search to take instead where there are none."""


def make_search(
    name: str, layouts: Sequence[Layout], *, seed: int, prior: Prior | None, cost: TrialCost
) -> Search:
    """A search over `layouts`; `prior` has the cost model's predictions, None without them.

    Raises InputError for an unknown name, and for a guided search without a prior.
    """
    if name not in SEARCHES:
        raise InputError(f"must be one of {', '.join(SEARCHES)}, got {shown(name)}", field="search")
    return SEARCHES[name](layouts, seed, prior, cost)
