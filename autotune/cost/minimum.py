"""Lower bound of the step time: the arithmetic at the device's peak."""

from autotune.cost.stages import Partition, blocks_per_stage
from autotune.layout import Layout
from autotune.model import Model


def minimum_step_seconds(
    layout: Layout, model: Model, *, peak_flops_per_second: float, partition: Partition
) -> float:
    """Seconds of arithmetic at the peak FLOP/s, on the slowest pipeline stage.

    A stage waits for the first micro-batch to pass the stages before it, computes all of the
    micro-batches, and then waits for the last gradient to pass back through those stages (1F1B
    without interleaving: Narayanan et al. 2021, arXiv 2104.04473, section 2). Communication, memory
    traffic and the optimiser are left out, so a shorter measured step time must be wrong.
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
    flops = max(micro_batches * stage + sum(stages[:i]) for i, stage in enumerate(stages))
    return flops * per_flop
