"""Find the parallel layout that trains a language model fastest on the nodes you have.

::

    import autotune

    space = autotune.SearchSpace(
        name="mine",
        model=autotune.Model(num_hidden_layers=32, ...),
        cluster=autotune.Cluster(nodes=4, gpus_per_node=8, device=autotune.device("h100")),
    )
    autotune.plan(space).rows(top=5)      # predicted, nothing is run
    run = autotune.tune(space, out="runs/mine")
    run.best, run.trials.to_pandas()
    autotune.load("runs/mine")            # the same run, later

Each name is imported on first use, so that `import autotune` stays fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.cluster import Cluster as Cluster
    from autotune.errors import AutotuneError as AutotuneError
    from autotune.errors import InputError as InputError
    from autotune.hardware import device as device
    from autotune.layout import Layout as Layout
    from autotune.model import Model as Model
    from autotune.models import load_model as load_model
    from autotune.named_spaces import load_space as load_space
    from autotune.place import Place as Place
    from autotune.planning import plan as plan
    from autotune.space import SearchSpace as SearchSpace
    from autotune.store.results import Run as Run
    from autotune.store.results import load as load
    from autotune.tuning import resume as resume
    from autotune.tuning import tune as tune

__version__ = "0.1.0"

# Public names: the module each is defined in, and its name there.
_PUBLIC = {
    "AutotuneError": ("errors", "AutotuneError"),
    "Cluster": ("cluster", "Cluster"),
    "InputError": ("errors", "InputError"),
    "Layout": ("layout", "Layout"),
    "Model": ("model", "Model"),
    "Place": ("place", "Place"),
    "Run": ("store.results", "Run"),
    "SearchSpace": ("space", "SearchSpace"),
    "device": ("hardware", "device"),
    "load": ("store.results", "load"),
    "load_model": ("models", "load_model"),
    "load_space": ("named_spaces", "load_space"),
    "plan": ("planning", "plan"),
    "resume": ("tuning", "resume"),
    "tune": ("tuning", "tune"),
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
