"""Reference training in a single process: no DeepSpeed, no process group, no sharding."""

import functools

import torch

from autotune.layout import Layout
from autotune.model import Model
from autotune.trial.corpus import text_files
from trainables.deepspeed_llm.build import Build
from trainables.deepspeed_llm.data import batch_slice
from trainables.deepspeed_llm.decoder import Decoder
from trainables.deepspeed_llm.tensor_parallel import TensorParallel
from trainables.deepspeed_llm.tokens import InOrder, TextTokens


def plain_decoder(model: Model, layout: Layout | None = None) -> Decoder:
    """The unsharded model, in fp32."""
    build = Build(
        model=model,
        layout=layout or Layout(attention_kernel="math", rmsnorm_kernel="plain"),
        parallel=TensorParallel(),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    return Decoder(build)


@functools.cache
def plain_training(
    model: Model, steps: int, batch_sizes: tuple[int, ...] = ()
) -> tuple[list[float], list[float]]:
    """Loss and global gradient norm before clipping of each step, all with the model's batch size
    or each with its own."""
    network = plain_decoder(model)
    matrices = [p for p in network.parameters() if p.dim() > 1]
    vectors = [p for p in network.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), eps=1e-5)
    samples = InOrder(TextTokens(text_files(None)), model.sequence_length)
    losses, norms = [], []
    for step in range(steps):
        tokens, targets = batch_slice(
            samples,
            step,
            global_batch_size=batch_sizes[step] if batch_sizes else model.global_batch_size,
            replica=0,
            replicas=1,
        )
        optimizer.zero_grad()
        loss = network(tokens, targets)
        loss.backward()
        gradients = [p.grad for p in network.parameters()]
        norm = float(torch.stack([g.double().norm() for g in gradients]).norm())
        for gradient in gradients:
            gradient.mul_(min(1.0, 1.0 / norm))
        optimizer.step()
        losses.append(float(loss.detach()))
        norms.append(norm)
    return losses, norms
