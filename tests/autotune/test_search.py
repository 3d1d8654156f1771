"""One contract for every search, and what each is for."""

import statistics

import pytest

from autotune.errors import InputError
from autotune.layout import Layout
from autotune.search import SEARCHES, Observation, make_search
from autotune.space import load_space
from autotune.trial import Outcome
from trainables.fake import fake_step_seconds

LAYOUTS = load_space("tiny").restricted({"rmsnorm_kernel": ["fused"]}).layouts()
ALL_SEARCHES = sorted(SEARCHES)


def observe(layout: Layout) -> Observation:
    if layout.micro_batch_size > 4:
        return Observation(layout=layout, outcome=Outcome.OOM, step_seconds=None)
    seconds = fake_step_seconds(layout)
    return Observation(layout=layout, outcome=Outcome.OK, step_seconds=seconds)


def run(search_name: str, seed: int, trials: int) -> list[Layout]:
    search = make_search(search_name, LAYOUTS, seed=seed)
    asked = []
    for _ in range(trials):
        layout = search.ask()
        assert layout is not None
        asked.append(layout)
        search.tell(observe(layout))
    return asked


@pytest.mark.parametrize("name", ALL_SEARCHES)
class TestContract:
    def test_never_the_same_layout_twice_and_ends_with_none(self, name: str) -> None:
        few = LAYOUTS[:12]
        search = make_search(name, few, seed=0)
        asked = [search.ask() for _ in few]
        assert set(asked) == set(few)
        assert search.ask() is None

    def test_same_seed_and_answers_same_questions(self, name: str) -> None:
        assert run(name, 5, 20) == run(name, 5, 20)

    def test_told_and_discarded_layouts_are_not_asked(self, name: str) -> None:
        search = make_search(name, LAYOUTS[:10], seed=1)
        for layout in LAYOUTS[:4]:
            search.tell(observe(layout))
        search.discard(LAYOUTS[4:8])
        assert {search.ask(), search.ask()} == set(LAYOUTS[8:10])
        assert search.ask() is None

    def test_is_told_of_layouts_that_it_does_not_have(self, name: str) -> None:
        search = make_search(name, LAYOUTS[:3], seed=1)
        search.tell(observe(Layout(tensor_parallel=8, data_parallel=1)))
        assert search.ask() in LAYOUTS[:3]

    def test_several_are_asked_before_any_is_told(self, name: str) -> None:
        search = make_search(name, LAYOUTS, seed=2)
        assert len({search.ask() for _ in range(5)}) == 5

    def test_only_failures_are_no_reason_to_stop(self, name: str) -> None:
        search = make_search(name, LAYOUTS, seed=3)
        for _ in range(25):
            layout = search.ask()
            assert layout is not None
            search.tell(Observation(layout=layout, outcome=Outcome.OOM, step_seconds=None))

    def test_a_space_of_one_layout(self, name: str) -> None:
        search = make_search(name, LAYOUTS[:1], seed=0)
        assert search.ask() == LAYOUTS[0]
        assert search.ask() is None


def test_unknown_search_is_one_sentence() -> None:
    with pytest.raises(InputError, match="--search must be one of hyperopt, random, grid"):
        make_search("annealing", LAYOUTS, seed=0)


def trials_until_the_best(name: str, seed: int) -> int:
    """Proposals until one is within 1 % of the best of all layouts."""
    best = min(observe(layout).step_seconds or 99 for layout in LAYOUTS)
    times = [observe(layout).step_seconds or 99 for layout in run(name, seed, len(LAYOUTS))]
    return 1 + next(index for index, seconds in enumerate(times) if seconds <= 1.01 * best)


def test_hyperopt_learns_from_what_it_is_told() -> None:
    hyperopt, random = (
        statistics.mean(trials_until_the_best(name, seed) for seed in range(12))
        for name in ("hyperopt", "random")
    )
    assert hyperopt < 0.8 * random, (hyperopt, random)


def test_grid_follows_the_space_and_random_the_seed() -> None:
    assert run("grid", 1, 10) == LAYOUTS[:10]
    assert run("random", 1, 10) != run("random", 2, 10)
