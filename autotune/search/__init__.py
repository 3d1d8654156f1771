"""Search algorithms behind one ask/tell interface; usable without Ray."""

from autotune.search.factory import NEED_PRIOR, SEARCHES, WITHOUT_PRIOR, make_search
from autotune.search.guided import TrialCost
from autotune.search.prior import Prediction, Prior
from autotune.search.protocol import Observation, Search
from autotune.search.pruning import Pruned, Unpruned, prune

__all__ = [
    "NEED_PRIOR",
    "SEARCHES",
    "WITHOUT_PRIOR",
    "Observation",
    "Prediction",
    "Prior",
    "Pruned",
    "Search",
    "TrialCost",
    "Unpruned",
    "make_search",
    "prune",
]
