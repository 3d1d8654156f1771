"""Time of a step's passes through the pipeline stages, in the order of DeepSpeed's TrainSchedule.

Passes and messages wait for each other: a stage exchanges messages with the next one between a
forward and a backward pass, and with the one before between a backward and a forward pass, and both
stages take part. A step takes as long as the longest chain of passes in which each waits for the
one before. Such a chain passes once through the stages before some stage, stays there for all
micro-batches, and passes once through the stages before it again. When that stage has begun, and
waits for its first gradients, the chain may be longer through later stages and back, and so it may
be after the last activations.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from autotune.cost.columns import Array, Columns
from autotune.cost.communication import Passes, Transfers
from autotune.cost.timed_stages import TimedStages


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The longest chain of each layout, arrays [n]."""

    stage: NDArray[np.intp]
    """Where it stays, as an index into the arrays of `TimedStages`."""
    bubble: Array
    """Seconds that it spends elsewhere: filling and draining the pipeline."""


def longest_chain(
    columns: Columns, stages: TimedStages, block: Passes, head: Passes, transfers: Transfers
) -> Chain:
    """The chain that a step's passes take as long as; `block` and `head` are the passes of one
    block and of the head.

    At most 2 % shorter than a simulation of DeepSpeed's schedule, and 3 % where a step has fewer
    micro-batches than stages (tests/trainables/test_deepspeed_schedule.py).
    """
    micro_batches, size = columns.micro_batches, columns.pipeline_parallel
    message, exchange = transfers.message, transfers.exchange
    of_block = block.forward + block.backward
    of_head = head.forward + head.backward
    forward, backward = (
        stages.blocks * in_block + stages.head * in_head
        for in_block, in_head in ((block.forward, head.forward), (block.backward, head.backward))
    )

    def there_and_back(blocks: Array, last: Array) -> Array:
        """Both passes of later blocks, and the messages on the way to the stage `last` and back.
        Messages to and from the stage itself count there."""
        return blocks * of_block + 2 * np.maximum(last - stages.index - 1, 0) * message

    before = stages.blocks_before * of_block + 2 * np.maximum(stages.index - 1, 0) * message
    # Where all micro-batches of the step are in flight the stage idles until the first gradients
    # come, for at least as long as later stages also wait for all of them.
    alike = np.maximum(size - micro_batches, stages.index)
    anyway = there_and_back(stages.blocks_alike, alike)
    of_last = np.where(stages.index < size - 1, stages.blocks[3], 0)
    to_last = there_and_back(stages.blocks_after, size - 1) + (1 - stages.head) * of_head - anyway
    to_last_but_one = there_and_back(stages.blocks_after - of_last, size - 2) - anyway
    ahead = np.minimum(size - stages.index, micro_batches) - 1
    neighbours = stages.neighbours

    def longer(passes: Array) -> Array:
        """How much longer a way to one of the last two stages and back is than the passes that the
        stage does in that time. On the last but one, one more pass is done."""
        here = passes + neighbours * message
        turned_before = np.where(alike < size - 1, to_last_but_one + here[2], 0)
        return np.maximum(np.maximum(to_last, turned_before) - ahead * here, 0)

    at_start, at_end = longer(forward), longer(backward)
    both = np.where(alike > stages.index, np.maximum(at_start, at_end), at_start + at_end)
    bubble = before + anyway + both
    chains = micro_batches * (forward + backward + neighbours * exchange) + bubble
    stage = chains.argmax(axis=0)
    return Chain(stage=stage, bubble=np.take_along_axis(bubble, stage[None], 0)[0])
