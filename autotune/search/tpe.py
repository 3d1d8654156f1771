"""HyperOpt's Tree-structured Parzen Estimator over the flat space of layouts.

HyperOpt is driven directly, without Ray: the space is one categorical choice per dimension (nested
spaces cannot be warm-started), and trials without a step time are told a finite penalty (a NaN or
an error would be forgotten, and proposed again). Most combinations of choices are illegal or done:
of those that TPE draws, the layout that is left and differs least is taken.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import hyperopt
import numpy as np

from autotune.layout import SEARCHED, Layout
from autotune.search.candidates import Candidates
from autotune.search.prior import Prediction, Prior
from autotune.search.protocol import NOTHING_LEFT, Observation

# TPE only ranks losses: any number above every step time says "bad".
_PENALTY_SECONDS = 1e6
_RANDOM_TRIALS_FIRST = 8
# Predictions that warm-start a search: of the most promising layouts, and over all others.
_LIKED = 10
_SPREAD = 30


class TpeSearch:
    """Bayesian search by HyperOpt. A `Search`.

    With a prior it is warm-started: HyperOpt is told the cost model's word on some layouts as if
    they had been tried. Before its first trial it then proposes the one that the prior likes best.
    """

    stopped_because = NOTHING_LEFT

    def __init__(self, layouts: Sequence[Layout], seed: int, prior: Prior | None = None) -> None:
        self._prior = prior
        self._candidates = Candidates(layouts)
        self._seed = seed
        self._size = len(self._candidates)
        self._choices = {
            dimension: values
            for dimension in SEARCHED
            if len(values := _values(layouts, dimension)) > 1
        }
        self._known = {self._key(layout) for layout in layouts}
        if self._choices:  # HyperOpt cannot describe a space without a choice
            space = {name: hyperopt.hp.choice(name, v) for name, v in self._choices.items()}
            self._domain = hyperopt.Domain(lambda _: 0.0, space)
        self._trials = hyperopt.Trials()
        self._first: Layout | None = None
        if prior is not None and self._choices:
            self._warm_start(prior)

    def ask(self) -> Layout | None:
        """TPE's suggestion among the layouts left."""
        if not len(self._candidates):
            return None
        # A function of the seed and of how many layouts are gone: a resumed search draws the same.
        random = np.random.default_rng((self._seed, self._size - len(self._candidates)))
        layout = self._first if self._first in self._candidates else None
        self._first = None
        if layout is None and self._choices:
            layout = self._nearest(self._suggest(random), random)
        layout = layout or self._candidates.first()
        assert layout is not None
        self._candidates.remove([layout])
        return layout

    def tell(self, observation: Observation) -> None:
        """Learn a step time, or the penalty where there is none."""
        self._candidates.remove([observation.layout])
        if not self._choices or self._key(observation.layout) not in self._known:
            return  # of another space, or of one layout: nothing that TPE could place
        seconds = observation.step_seconds
        self._learn(observation.layout, _PENALTY_SECONDS if seconds is None else seconds)

    def discard(self, layouts: Iterable[Layout]) -> None:
        """Never propose these."""
        self._candidates.remove(layouts)

    def prediction(self, layout: Layout) -> Prediction | None:
        """What the cost model says, uncorrected."""
        return None if self._prior is None else self._prior.prediction(layout)

    def _warm_start(self, prior: Prior) -> None:
        """Tell HyperOpt the predictions of the best layouts and of others spread over the rest."""
        expected = prior.log_seconds - np.log(prior.estimates.fit_probability + 1e-9)
        order = np.argsort(expected, kind="stable")
        others = np.linspace(0, len(order) - 1, _SPREAD).astype(int)
        self._first = prior.layouts[order[0]]
        for place in order[np.union1d(np.arange(min(_LIKED, len(order))), others)]:
            self._learn(prior.layouts[place], float(np.exp(min(expected[place], 20.0))))

    def _suggest(self, random: np.random.Generator) -> tuple[Any, ...]:
        """TPE's draw: a value for each choice, legal together or not."""
        document = hyperopt.tpe.suggest(
            self._trials.new_trial_ids(1),
            self._domain,
            self._trials,
            int(random.integers(2**31)),
            n_startup_jobs=_RANDOM_TRIALS_FIRST,
            verbose=False,
        )[0]
        indices = document["misc"]["vals"]
        return tuple(values[indices[name][0]] for name, values in self._choices.items())

    def _nearest(self, drawn: tuple[Any, ...], random: np.random.Generator) -> Layout:
        """The layout left that differs in the fewest dimensions; equals are drawn from."""
        left = list(self._candidates)
        differences = [
            sum(mine != theirs for mine, theirs in zip(self._key(layout), drawn, strict=True))
            for layout in left
        ]
        fewest = min(differences)
        nearest = [
            layout for layout, count in zip(left, differences, strict=True) if count == fewest
        ]
        return nearest[random.integers(len(nearest))]

    def _learn(self, layout: Layout, loss: float) -> None:
        """Add a finished trial to HyperOpt's, as if it had suggested it."""
        identifier = self._trials.new_trial_ids(1)[0]
        values = {
            name: [choices.index(value)]
            for (name, choices), value in zip(self._choices.items(), self._key(layout), strict=True)
        }
        misc = {
            "tid": identifier,
            "cmd": self._domain.cmd,
            "workdir": None,
            "idxs": {name: [identifier] for name in values},
            "vals": values,
        }
        result = {"status": hyperopt.STATUS_OK, "loss": loss}
        document = self._trials.new_trial_docs([identifier], [None], [result], [misc])[0]
        document["state"] = hyperopt.JOB_STATE_DONE
        self._trials.insert_trial_doc(document)
        self._trials.refresh()

    def _key(self, layout: Layout) -> tuple[Any, ...]:
        return tuple(getattr(layout, name) for name in self._choices)


def _values(layouts: Sequence[Layout], dimension: str) -> list[Any]:
    """The different values that a dimension takes."""
    return list(dict.fromkeys(getattr(layout, dimension) for layout in layouts))
