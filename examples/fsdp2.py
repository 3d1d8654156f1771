"""A plain PyTorch training script: FSDP2 and tensor parallelism, started by torchrun.

It knows nothing of autotune but one line, which reports a step; fsdp2.toml says how it is started.

    torchrun --nproc-per-node 4 examples/fsdp2.py --tensor-parallel 2 --steps 5
"""

import argparse
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils.checkpoint import checkpoint

from autotune.report import step

VOCABULARY, WIDTH, LAYERS, HEADS = 1024, 128, 4, 8


class Block(nn.Module):
    """Attention and a feed-forward network, each after a norm."""

    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """`x`: (sequences, tokens, WIDTH)."""
        if self.recompute:
            return checkpoint(self.block, x, use_reentrant=False)
        return self.block(x)

    def block(self, x: Tensor) -> Tensor:
        """The block itself; with tensor parallelism it has a part of the heads."""
        y = self.norm1(x)
        # (sequences, tokens, heads here x size) to (sequences, heads here, tokens, size)
        heads = [
            layer(y).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    """Tokens in, logits out."""

    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block(recompute) for _ in range(LAYERS))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """`tokens`: (sequences, tokens)."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def distribute(model: Decoder, mesh: DeviceMesh, *, reshard_after_forward: bool) -> None:
    """Split the blocks over the mesh's "tensor" dimension and shard all over its "data"."""
    into, out_of = ColwiseParallel(), RowwiseParallel()
    plan = {"query": into, "key": into, "value": into, "out": out_of, "up": into, "down": out_of}
    for block in model.blocks:
        if mesh["tensor"].size() > 1:
            parallelize_module(block, mesh["tensor"], plan)
        fully_shard(block, mesh=mesh["data"], reshard_after_forward=reshard_after_forward)
    fully_shard(model, mesh=mesh["data"], reshard_after_forward=reshard_after_forward)


def main() -> None:
    """Train on random tokens."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--micro-batch-size", type=int, default=1)
    parser.add_argument("--global-batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=64)
    parser.add_argument("--zero-stage", type=int, choices=(2, 3), default=3)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    data_parallel = dist.get_world_size() // options.tensor_parallel
    mesh = init_device_mesh(
        device, (data_parallel, options.tensor_parallel), mesh_dim_names=("data", "tensor")
    )
    torch.manual_seed(0)
    model = Decoder(options.recompute).to(device)
    distribute(model, mesh, reshard_after_forward=options.zero_stage == 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    accumulation = options.global_batch_size // (data_parallel * options.micro_batch_size)

    # The same batches in every layout: of each, a replica takes its rows.
    data = torch.Generator().manual_seed(1)
    replica = mesh["data"].get_local_rank()
    shape = (options.global_batch_size, options.sequence_length + 1)

    for _ in range(options.steps):
        batch = torch.randint(VOCABULARY, shape, generator=data).to(device)
        micro_batches = batch.chunk(data_parallel)[replica].split(options.micro_batch_size)
        started, total = time.perf_counter(), torch.zeros((), device=device)
        for number, tokens in enumerate(micro_batches, start=1):
            model.set_requires_gradient_sync(number == accumulation)
            logits = model(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) / accumulation
            loss.backward()
            total += loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(total)
        mean = float(total) / dist.get_world_size()
        seconds = time.perf_counter() - started
        if dist.get_rank() == 0:
            step(step_seconds=seconds, loss=mean)
            print(f"loss {mean:.3f}, {seconds:.3f} s", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
