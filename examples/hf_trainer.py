"""Hugging Face's Trainer with DeepSpeed, started by torchrun.

The callback `ReportSteps` is all that it has for autotune; hf_trainer.toml says how it is started.

    torchrun --nproc-per-node 2 examples/hf_trainer.py --zero-stage 2 --steps 5
"""

import argparse
import tempfile
import time
from typing import Any

import deepspeed
import torch
from torch.utils.data import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from autotune.report import step

VOCABULARY = 1024


class RandomTokens(Dataset):
    """Sequences of random tokens, the same in every run."""

    def __init__(self, sequences: int, length: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(VOCABULARY, (sequences, length), generator=generator)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


class ReportSteps(TrainerCallback):
    """Reports each optimiser step to autotune; wants logging_steps=1."""

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = _now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds = _now() - self.started

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **_: Any,
    ) -> None:
        if "loss" in logs:
            memory = torch.cuda.max_memory_allocated() / 2**30 if args.n_gpu else None
            step(step_seconds=self.seconds, loss=logs["loss"], peak_memory_gib=memory)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


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
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            deepspeed={
                "zero_optimization": {"stage": options.zero_stage},
                "train_micro_batch_size_per_gpu": "auto",
                "gradient_accumulation_steps": "auto",
                "train_batch_size": "auto",
                "gradient_clipping": "auto",
                "bf16": {"enabled": has_gpu},
            },
            bf16=has_gpu,
            use_cpu=not has_gpu,
            per_device_train_batch_size=options.micro_batch_size,
            gradient_accumulation_steps=options.accumulation,
            gradient_checkpointing=options.recompute,
            max_steps=options.steps,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        )
        set_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=344,
            num_hidden_layers=4,
            num_attention_heads=8,
            use_cache=False,
        )
        Trainer(
            model=LlamaForCausalLM(config),
            args=arguments,
            train_dataset=RandomTokens(4096, options.sequence_length),
            callbacks=[ReportSteps()],
        ).train()


if __name__ == "__main__":
    main()
