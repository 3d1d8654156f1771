"""The predicted time of a step's passes is that of DeepSpeed's own schedule, run with messages that
block both stages."""

import dataclasses
import functools

import numpy as np
import pytest
from deepspeed.runtime.pipe.schedule import TrainSchedule

from autotune.cost.columns import columns_of
from autotune.cost.communication import Passes, Transfers
from autotune.cost.passes import PassTimes
from autotune.cost.schedule import longest_chain
from autotune.cost.stages import Partition, blocks_per_stage
from autotune.cost.timed_stages import timed_stages_of
from autotune.layout import Layout
from autotune.model import Model
from autotune.pipeline.predicted import simulated
from tests.conftest import scaled

# A command, the neighbour that it waits for, and what that one must do at the same time.
PARTNERS = {
    "SendActivation": (1, "RecvActivation"),
    "RecvActivation": (-1, "SendActivation"),
    "SendGrad": (-1, "RecvGrad"),
    "RecvGrad": (1, "SendGrad"),
}
PASSES = ("ForwardPass", "BackwardPass")
MODEL = Model(
    num_hidden_layers=5,
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=1,
    num_key_value_heads=1,
    vocab_size=512,
    sequence_length=64,
    global_batch_size=8,
)


@functools.cache
def commands_of_stages(stages: int, micro_batches: int) -> list[list[str]]:
    return [
        [
            name
            for commands in TrainSchedule(micro_batches, stages, stage)
            for name in (type(command).__name__ for command in commands)
            if name in PARTNERS or name in PASSES
        ]
        for stage in range(stages)
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Passes of a pipeline in seconds; one of a block takes about 1 s forward."""

    model: Model
    partition: Partition
    stages: int
    micro_batches: int
    block: tuple[float, float]
    head: tuple[float, float]
    message: float

    @property
    def passes(self) -> list[list[float]]:
        """Seconds of both passes by stage."""
        blocks = np.array(blocks_per_stage(self.model, self.stages, self.partition))
        last = np.arange(self.stages) == self.stages - 1
        both = zip(self.block, self.head, strict=True)
        return [list(blocks * of_block + last * of_head) for of_block, of_head in both]

    def by_deepspeed(self) -> float:
        """The end of DeepSpeed's schedule. A message takes the time of sender and receiver, from
        when both are at it."""
        to_do = [list(reversed(c)) for c in commands_of_stages(self.stages, self.micro_batches)]
        seconds = dict(zip(PASSES, self.passes, strict=True))
        clocks = [0.0] * self.stages
        moved = True
        while moved:
            moved = False
            for stage in range(self.stages):
                while to_do[stage]:
                    command = to_do[stage][-1]
                    if command in PASSES:
                        clocks[stage] += seconds[command][stage]
                    else:
                        step, partner = PARTNERS[command]
                        other = stage + step
                        if not to_do[other] or to_do[other][-1] != partner:
                            break
                        both = max(clocks[stage], clocks[other]) + self.message
                        clocks[stage] = clocks[other] = both
                        to_do[other].pop()
                    to_do[stage].pop()
                    moved = True
        assert not any(to_do), "the stages wait for each other"
        return max(clocks)

    def by_the_formula(self) -> float:
        """What the cost model adds up for a layout."""
        columns = columns_of(
            [Layout(pipeline_parallel=self.stages, gradient_accumulation_steps=self.micro_batches)]
        )
        stages = timed_stages_of(columns, self.model, self.partition)
        block, head = (
            Passes(forward=np.array([forward]), backward=np.array([backward]))
            for forward, backward in (self.block, self.head)
        )
        transfers = Transfers(
            message=np.array([self.message]), exchange=np.array([2 * self.message])
        )
        chain = longest_chain(columns, stages, block, head, transfers)
        at = chain.stage[0]
        of_stage = (
            stages.blocks[at, 0] * sum(self.block)
            + stages.head[at, 0] * sum(self.head)
            + stages.neighbours[at, 0] * 2 * self.message
        )
        return float(self.micro_batches * of_stage + chain.bubble[0])

    def drawn(self) -> float:
        """The end of the schedule that is drawn."""
        forward, backward = self.passes
        times = PassTimes(
            forward=np.array(forward),
            backward=np.array(backward),
            message=self.message,
            exchange=2 * self.message,
            reduction=0.0,
            update=0.0,
        )
        return simulated(times, self.micro_batches).passes_seconds


def shape(random: np.random.Generator, *, few_micro_batches: bool = False) -> Shape:
    """Two to sixteen stages, equal or not, with or without a long head on the last."""
    stages = int(random.integers(2, 17))
    fewest, most = (1, stages) if few_micro_batches else (stages, 129)
    backward = random.uniform(1, 3)
    head = random.choice([0.0, random.uniform(0, 3)])
    blocks = stages * int(random.integers(1, 9)) + random.choice([0, random.integers(0, stages)])
    model = dataclasses.replace(
        MODEL, num_hidden_layers=int(blocks), vocab_size=int(random.integers(1, 4000))
    )
    return Shape(
        model=model,
        partition=random.choice(["blocks", "parameters"]),
        stages=stages,
        micro_batches=int(random.integers(fewest, most)),
        block=(1.0, backward),
        head=(head, 2 * head),
        message=random.choice([0.0, random.uniform(0, 0.1 * (1 + backward))]),
    )


@pytest.mark.parametrize(("few_micro_batches", "tolerance"), [(False, 0.03), (True, 0.05)])
def test_passes_take_as_long_as_in_deepspeeds_schedule(
    few_micro_batches: bool, tolerance: float
) -> None:
    random = np.random.default_rng(7)
    for _ in range(scaled(40 if few_micro_batches else 200)):
        some = shape(random, few_micro_batches=few_micro_batches)
        formula, deepspeed = some.by_the_formula(), some.by_deepspeed()
        assert (1 - tolerance) * deepspeed <= formula <= deepspeed * (1 + 1e-9), some


def test_the_drawn_schedule_is_deepspeeds() -> None:
    random = np.random.default_rng(8)
    for few_micro_batches in (False, True):
        for _ in range(scaled(15)):
            some = shape(random, few_micro_batches=few_micro_batches)
            if min(some.passes[0]) == 0:  # a stage of the embedding alone
                continue
            assert some.drawn() == pytest.approx(some.by_deepspeed()), some


def test_a_slow_stage_hides_the_passes_of_the_others() -> None:
    """Five blocks on four stages: while the first works the others are done, and it never waits."""
    slow_first = Shape(
        model=MODEL,
        partition="blocks",
        stages=4,
        micro_batches=4,
        block=(1.0, 1.0),
        head=(0.0, 0.0),
        message=0.0,
    )
    assert blocks_per_stage(MODEL, 4, "blocks") == (2, 1, 1, 1)
    assert slow_first.by_the_formula() == slow_first.by_deepspeed() == 4 * 4
    # With a long head it is the last stage that never waits, but for the first way to it and back.
    slow_last = dataclasses.replace(slow_first, head=(3.0, 3.0))
    assert slow_last.by_the_formula() == slow_last.by_deepspeed() == 4 * 8 + 8
