"""Contract tests that every search must pass."""

import math
import pickle
from collections.abc import Sequence

from autotune.cost.model import CostModel
from autotune.layout import Layout
from autotune.named_spaces import load_space
from autotune.search import Observation, Prior, Search, TrialCost
from autotune.trial.trial import Outcome

# In these tests layouts with a larger micro-batch run out of memory.
_LARGEST_MICRO_BATCH = 4


class SearchContract:
    """Tests of one search. A subclass implements `make_search` and may override the layouts."""

    def make_search(
        self, layouts: Sequence[Layout], *, seed: int, prior: Prior | None, cost: TrialCost
    ) -> Search:
        """A new search over `layouts`."""
        raise NotImplementedError

    def offered(self) -> list[Layout]:
        """The layouts to search: 348 by default."""
        return load_space("tiny").restricted({"rmsnorm_kernel": ["fused"]}).layouts()

    def observe(self, layout: Layout) -> Observation:
        """The result of a trial of the layout."""
        if layout.micro_batch_size > _LARGEST_MICRO_BATCH:
            return Observation(layout=layout, outcome=Outcome.OOM, step_seconds=None)
        seconds = 1 + 0.2 * layout.tensor_parallel + 0.1 * layout.recomputes
        seconds += 0.4 / layout.micro_batch_size + 0.01 * layout.zero_stage
        return Observation(layout=layout, outcome=Outcome.OK, step_seconds=seconds)

    def _search(self, layouts: Sequence[Layout], seed: int = 0) -> Search:
        space = load_space("tiny")
        model = CostModel(space.model, space.precision, space.cluster)
        every_trial_pays = TrialCost(
            seconds=lambda layout: (1.0, 6.0),
            devices=4,
            training_gpu_hours=math.inf,
            training_steps=1,
        )
        prior = Prior(model, layouts)
        return self.make_search(layouts, seed=seed, prior=prior, cost=every_trial_pays)

    def _asked(self, seed: int, trials: int) -> list[Layout]:
        search = self._search(self.offered(), seed)
        asked = []
        for _ in range(trials):
            layout = search.ask()
            assert layout is not None
            asked.append(layout)
            search.tell(self.observe(layout))
        return asked

    def test_asks_for_every_layout_once_and_then_for_none(self) -> None:
        """`ask` never repeats a layout, and ends with None and a reason."""
        few = self.offered()[:12]
        search = self._search(few)
        asked = [search.ask() for _ in few]
        assert set(asked) == set(few)
        assert search.ask() is None and search.stopped_because

    def test_the_same_seed_and_the_same_answers_make_the_same_search(self) -> None:
        """Resuming a search depends on this."""
        assert self._asked(5, 12) == self._asked(5, 12)

    def test_layouts_that_were_told_or_discarded_are_not_asked(self) -> None:
        """`tell` and `discard` remove layouts, whether or not they were asked for."""
        layouts = self.offered()[:10]
        search = self._search(layouts, seed=1)
        for layout in layouts[:4]:
            search.tell(self.observe(layout))
        search.discard(layouts[4:8])
        assert {search.ask(), search.ask()} == set(layouts[8:10])
        assert search.ask() is None

    def test_results_of_layouts_of_another_space_do_no_harm(self) -> None:
        """`tell` accepts layouts that are not in the search."""
        layouts = self.offered()[:3]
        search = self._search(layouts, seed=1)
        search.tell(self.observe(Layout(tensor_parallel=8, data_parallel=1)))
        assert search.ask() in layouts

    def test_several_layouts_may_be_asked_before_any_is_told(self) -> None:
        """Trials may run side by side."""
        search = self._search(self.offered(), seed=2)
        assert len({search.ask() for _ in range(5)}) == 5

    def test_failures_alone_are_no_reason_to_stop(self) -> None:
        """A search continues while no layout has run."""
        search = self._search(self.offered(), seed=3)
        for _ in range(25):
            layout = search.ask()
            assert layout is not None
            search.tell(Observation(layout=layout, outcome=Outcome.OOM, step_seconds=None))

    def test_a_space_of_one_layout(self) -> None:
        """It is asked once."""
        (layout,) = self.offered()[:1]
        search = self._search([layout])
        assert search.ask() == layout
        assert search.ask() is None

    def test_a_search_that_is_told_everything_again_goes_on_as_before(self) -> None:
        """A resumed search proposes the same layouts as an uninterrupted one."""
        layouts = self.offered()
        whole = self._asked(3, 8)
        resumed = self._search(layouts, seed=3)
        for layout in whole[:4]:
            resumed.tell(self.observe(layout))
        for layout in whole[4:]:
            assert resumed.ask() == layout
            resumed.tell(self.observe(layout))

    def test_predictions_survive_pickling(self) -> None:
        """A prediction is plain data, or None."""
        layout = self.offered()[0]
        prediction = self._search([layout]).prediction(layout)
        assert pickle.loads(pickle.dumps(prediction)) == prediction
