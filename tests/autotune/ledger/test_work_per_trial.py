"""The work per trial grows neither with the trials so far nor with the layouts of the space.

Work is counted in function calls from the ledger and the search, not in time.
"""

import dataclasses
import statistics
import sys
import zlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import autotune
from autotune.ledger.ledger import Ledger
from autotune.named_spaces import load_space
from autotune.space import SearchSpace
from autotune.store.run_directory import open_run
from autotune.trial.trainable import RankHost
from autotune.trial.trial import Ended, StepReport, TrialSpec
from tests.autotune.simulate import Silent, new_store, run_one
from trainables.fake import FakeTrainable

COUNTED = tuple(str(Path(autotune.__file__).parent / part) for part in ("ledger", "search"))


class Distinct(FakeTrainable):
    """Gives every layout a step time of its own: ties would be listed in best.json."""

    def run(
        self, spec: TrialSpec, hosts: Sequence[RankHost]
    ) -> Generator[StepReport | Ended, None, None]:
        slower = 1 + (zlib.crc32(repr(spec.layout).encode()) % 1000) / 10_000
        for event in super().run(spec, hosts):
            if isinstance(event, StepReport):
                ranks = tuple(
                    dataclasses.replace(rank, step_seconds=slower * rank.step_seconds)
                    for rank in event.ranks
                )
                event = dataclasses.replace(event, ranks=ranks)
            yield event


def calls(action: Callable[[], object]) -> int:
    """Calls from, to and within the ledger and the search; resuming a generator is one."""
    count = 0

    def counted(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(COUNTED):
            count += 1

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        action()
    finally:
        sys.setprofile(before)
    return count


SMALL = load_space("tiny")
LARGE = SMALL.replaced({"zero_stage": (0, 1, 2, 3), "torch_compile": (False, True)}, what=None)


def calls_per_trial(directory: Path, trials: int, space: SearchSpace = LARGE) -> list[int]:
    store = new_store(directory, space=space, max_trials=trials or 1, stop_factor=9.0)
    ledger = Ledger(store, Silent())

    def one_trial() -> None:
        spec = ledger.next_trial()
        assert spec is not None
        run_one(ledger, Distinct(), spec)

    return [calls(one_trial) for _ in range(trials)]


def test_a_late_trial_is_no_more_work_than_an_early_one(tmp_path: Path) -> None:
    counts = calls_per_trial(tmp_path, 240)
    assert statistics.mean(counts[-60:]) < 1.2 * statistics.mean(counts[20:80])


def test_a_trial_is_no_more_work_in_a_larger_space(tmp_path: Path) -> None:
    assert len(LARGE.layouts()) >= 2 * len(SMALL.layouts())
    few = calls_per_trial(tmp_path / "few", 10, SMALL)
    many = calls_per_trial(tmp_path / "many", 10, LARGE)
    assert statistics.mean(many) < 1.2 * statistics.mean(few)


def test_resuming_is_the_same_work_for_every_trial_on_record(tmp_path: Path) -> None:
    def of_resuming(trials: int) -> int:
        directory = tmp_path / str(trials)
        calls_per_trial(directory, trials)
        store = open_run(directory)
        return calls(lambda: Ledger(store, Silent()))

    none, few, many = map(of_resuming, (0, 60, 240))
    assert (many - none) / 240 < 1.2 * (few - none) / 60
