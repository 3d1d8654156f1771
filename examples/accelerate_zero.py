"""A training loop with Hugging Face Accelerate and DeepSpeed's ZeRO, started by torchrun.

It prints a line per step, as such loops do; accelerate_zero.toml reads that line.

    torchrun --nproc-per-node 2 examples/accelerate_zero.py --zero-stage 2 --steps 5
"""

import argparse
import time

import deepspeed
import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 1024


def main() -> None:
    """Train on random tokens."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--zero-stage", type=int, default=1)
    parser.add_argument("--micro-batch-size", type=int, default=1)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--sequence-length", type=int, default=64)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()

    has_gpu = torch.cuda.is_available()
    if not has_gpu:  # or DeepSpeed compiles C++ for minutes at its first start
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = Accelerator(
        cpu=not has_gpu,
        mixed_precision="bf16" if has_gpu else "no",
        gradient_accumulation_steps=options.accumulation,
        deepspeed_plugin=DeepSpeedPlugin(
            zero_stage=options.zero_stage,
            gradient_accumulation_steps=options.accumulation,
            gradient_clipping=1.0,
        ),
    )
    set_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=344,
            num_hidden_layers=4,
            num_attention_heads=8,
            use_cache=False,
        )
    )
    if options.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    per_step = options.micro_batch_size * options.accumulation * accelerator.num_processes
    tokens = torch.randint(
        VOCABULARY,
        (per_step * options.steps, options.sequence_length),
        generator=torch.Generator().manual_seed(1),
    )
    model, optimizer, batches = accelerator.prepare(
        model,
        torch.optim.AdamW(model.parameters(), lr=1e-3),
        DataLoader(TensorDataset(tokens), batch_size=options.micro_batch_size),
    )
    losses, started = [], time.perf_counter()
    for (batch,) in batches:
        with accelerator.accumulate(model):
            loss = model(input_ids=batch, labels=batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.detach())
        if accelerator.sync_gradients:
            # Reading the loss waits for the device.
            mean = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
            seconds = time.perf_counter() - started
            accelerator.print(f"loss {mean:.4f} | {1000 * seconds:.1f} ms per step", flush=True)
            losses, started = [], time.perf_counter()
    accelerator.end_training()


if __name__ == "__main__":
    main()
