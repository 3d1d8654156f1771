"""The least time that a step can take on a device that never falls below its peak."""

from autotune.cost.stages import Partition, blocks_per_stage
from autotune.layout import Layout
from autotune.model import Model


def minimum_step_seconds(
    layout: Layout, model: Model, *, peak_flops_per_second: float, partition: Partition
) -> float:
    """Seconds of a step whose only cost is the arithmetic, at the peak, on the slowest stage.

    A stage can begin when the first micro-batch has come through those before it, has all of them
    to compute, and the last one's gradient has to go back through those before it (1F1B without
    interleaving: Narayanan et al. 2021, arXiv 2104.04473, section 2). No communication, no memory
    traffic, no optimiser: whatever is faster was measured wrong.
    """
    head = 6 * model.vocab_size * model.hidden_size
    all_flops = model.hardware_flops_per_token(layout.activation_checkpointing)
    block = (all_flops - head) / model.num_hidden_layers
    blocks = blocks_per_stage(model, layout.pipeline_parallel, partition)
    stages = [count * block for count in blocks]
    stages[-1] += head
    tokens = layout.micro_batch_size * model.sequence_length
    per_flop = tokens / layout.tensor_parallel / peak_flops_per_second
    micro_batches = layout.gradient_accumulation_steps
    flops = max(micro_batches * own + sum(stages[:i]) for i, own in enumerate(stages))
    return flops * per_flop
