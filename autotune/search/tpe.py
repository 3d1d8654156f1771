"""HyperOpt's Tree-structured Parzen Estimator over the flat space of layouts.

HyperOpt is called directly, without Ray. The space has one categorical choice per dimension,
because nested spaces cannot be warm-started. Trials without a step time get a finite penalty,
because HyperOpt ignores NaN and errors and would propose them again. Most combinations that TPE
draws are illegal or already tried: the nearest remaining layout is proposed instead.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import hyperopt
import numpy as np

from autotune.layout import SEARCHED, Layout
from autotune.search.candidates import Candidates
from autotune.search.prior import Prediction, Prior
from autotune.search.protocol import NOTHING_LEFT, Observation

# TPE only ranks losses: any number above all step times will do.
_PENALTY_SECONDS = 1e6
_RANDOM_TRIALS_FIRST = 8
# Predictions of the warm start: of the best layouts, and of layouts spread over the ranking.
_WARM_START_BEST = 10
_WARM_START_SPREAD = 30


class TpeSearch:
    """Bayesian search by HyperOpt. A `Search`.

    With a prior it is warm-started: HyperOpt gets the cost model's predictions for some layouts as
    if they were results. The first proposal is then the layout with the best prediction.
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
        """The remaining layout nearest to TPE's suggestion."""
        if not len(self._candidates):
            return None
        # Seeded by the number of layouts no longer candidates: a resumed search draws the same.
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
        """Add a step time, or the penalty where there is none."""
        self._candidates.remove([observation.layout])
        if not self._choices or self._key(observation.layout) not in self._known:
            return  # a layout of another space, or a space without a choice
        seconds = observation.step_seconds
        self._learn(observation.layout, _PENALTY_SECONDS if seconds is None else seconds)

    def discard(self, layouts: Iterable[Layout]) -> None:
        """Never propose these."""
        self._candidates.remove(layouts)

    def prediction(self, layout: Layout) -> Prediction | None:
        """The cost model's prediction, without corrections."""
        return None if self._prior is None else self._prior.prediction(layout)

    def _warm_start(self, prior: Prior) -> None:
        """Add the predictions of the best layouts, and of others spread over the ranking."""
        expected = prior.log_seconds - np.log(prior.estimates.fit_probability + 1e-9)
        order = np.argsort(expected, kind="stable")
        spread = np.linspace(0, len(order) - 1, _WARM_START_SPREAD).astype(int)
        self._first = prior.layouts[order[0]]
        for index in order[np.union1d(np.arange(min(_WARM_START_BEST, len(order))), spread)]:
            self._learn(prior.layouts[index], float(np.exp(min(expected[index], 20.0))))

    def _suggest(self, random: np.random.Generator) -> tuple[Any, ...]:
        """TPE's suggestion: a value for each choice; the combination may be illegal."""
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
        """The remaining layout that differs in the fewest dimensions; ties are broken at random."""
        remaining = list(self._candidates)
        differences = [
            sum(own != wanted for own, wanted in zip(self._key(layout), drawn, strict=True))
            for layout in remaining
        ]
        fewest = min(differences)
        nearest = [
            layout for layout, count in zip(remaining, differences, strict=True) if count == fewest
        ]
        return nearest[random.integers(len(nearest))]

    def _learn(self, layout: Layout, loss: float) -> None:
        """Add a result to HyperOpt's trials, as if HyperOpt had suggested the layout."""
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
    """The distinct values of a dimension."""
    return list(dict.fromkeys(getattr(layout, dimension) for layout in layouts))
