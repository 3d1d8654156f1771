"""Searches: one ask/tell interface, usable without Ray."""

from autotune.search.factory import SEARCHES, make_search
from autotune.search.protocol import Observation, Search
from autotune.search.pruning import Pruned, prune

__all__ = ["SEARCHES", "Observation", "Pruned", "Search", "make_search", "prune"]
