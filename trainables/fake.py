"""A fake trainable for tests and demonstrations: it trains nothing.

Step times come from a simple formula of the layout. They predict no real hardware.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from autotune.cluster import Cluster
from autotune.layout import Layout
from autotune.trial.trainable import RankHost, TrainableDescription
from autotune.trial.trial import Ended, Outcome, RankStep, StepReport, TrialSpec


class FakeHost:
    """A host without ranks. A `RankHost`."""

    def __init__(self, *, address: str = "127.0.0.1") -> None:
        self._address = address

    def listen(self) -> tuple[str, int]:
        """An address where nobody listens."""
        return self._address, 1

    def start(self, job: Mapping[str, Any]) -> None:
        """Nothing."""

    def events(self, timeout_seconds: float) -> list[dict[str, Any]]:
        """Nothing, after the timeout."""
        time.sleep(timeout_seconds)
        return []

    def stop(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class FakeTrainable:
    """Pretends to train. A `Trainable`."""

    def __init__(self, *, pause_seconds: float = 0.0, largest_micro_batch: int = 4) -> None:
        """Each step sleeps `pause_seconds`; larger micro-batches "run out of memory"."""
        self._pause_seconds = pause_seconds
        self._largest_micro_batch = largest_micro_batch

    @property
    def host_factory(self) -> Callable[..., RankHost] | None:
        """Hosts without ranks."""
        return FakeHost

    def check(self, cluster: Cluster, hosts: Sequence[RankHost]) -> None:
        """Every node is fit."""

    def run(
        self, spec: TrialSpec, hosts: Sequence[RankHost]
    ) -> Generator[StepReport | Ended, None, None]:
        """The spec's steps, or an "out of memory" before the first."""
        if spec.layout.micro_batch_size > self._largest_micro_batch:
            yield Ended(outcome=Outcome.OOM, reason="rank 0: the fake ran out of memory")
            return
        for step in range(spec.all_steps):
            time.sleep(self._pause_seconds)
            yield StepReport(
                step=step,
                ranks=tuple(_fake_ranks(spec.layout, step)),
                micro_batches=spec.micro_batches(step),
            )
        yield Ended(outcome=Outcome.OK, reason="", startup_seconds=0.0)


def fake_step_seconds(layout: Layout) -> float:
    """The step time that the fake reports: smallest for tp1, pp1, mb4 and no checkpointing."""
    recomputed = (0.0, 0.1, 0.3)[layout.recomputes]
    spread = 0.2 * layout.tensor_parallel + 0.1 * layout.pipeline_parallel
    return 1.0 + spread + recomputed + 0.4 / layout.micro_batch_size + 0.01 * layout.zero_stage


def _fake_ranks(layout: Layout, step: int) -> Iterator[RankStep]:
    for rank in range(layout.world_size):
        yield RankStep(
            rank=rank,
            step=step,
            step_seconds=fake_step_seconds(layout),
            loss=8.0 - 0.1 * step,
            grad_norm=1.0,
            peak_memory_gib=0.1 * layout.micro_batch_size,
            peak_reserved_gib=0.1 * layout.micro_batch_size,
        )


DESCRIPTION = TrainableDescription(
    name="fake",
    trains="nothing",
    trainer="deepspeed_llm",
    make=lambda setup: FakeTrainable(),
    reduced_trials=True,
)
"""Not among the installed trainables: tests make it known by `autotune.trial.registry.register`."""
