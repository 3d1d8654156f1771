"""Section 2: baseline in plain PyTorch with Hugging Face's Llama, on the same shapes.

bf16 weights with fp32 master weights for a fused AdamW, SDPA attention and gradient clipping; eager
and with torch.compile.
"""

import time
from typing import Any, Literal

from autotune.trial.measurement import measure
from autotune.trial.trial import RankStep, StepReport, TrialSpec

Peer = Literal["hugging_face", "hugging_face_compiled"]
PEERS: tuple[Peer, ...] = ("hugging_face", "hugging_face_compiled")


def train(peer: Peer, spec: TrialSpec) -> dict[str, Any]:
    """Train the spec's model on the device. Call in a fresh process."""
    import torch

    device = torch.device("cuda" if spec.cluster.device.kind == "gpu" else "cpu")
    trainer = _Trainer(spec, device)
    if peer == "hugging_face_compiled":
        trainer.model.compile()
    steps = [
        StepReport(step=number, ranks=(_timed(trainer, number),)) for number in range(spec.steps)
    ]
    measured = measure(spec, steps)
    return {
        "outcome": "ok",
        "step_seconds": measured.step_seconds,
        "all_step_seconds": [step.step_seconds for step in steps],
        "mfu": measured.mfu,
        "hardware_flops_utilisation": measured.hardware_flops_utilisation,
        "peak_memory_gib": measured.peak_memory_gib,
        "final_loss": measured.final_loss,
    }


def _timed(trainer: "_Trainer", number: int) -> RankStep:
    import torch

    on_gpu = trainer.device.type == "cuda"
    batch = trainer.batch()
    if on_gpu:
        torch.cuda.synchronize()
    started = time.perf_counter()
    loss, norm = trainer.step(batch)
    if on_gpu:
        torch.cuda.synchronize()
    return RankStep(
        rank=0,
        step=number,
        step_seconds=time.perf_counter() - started,
        loss=loss,
        grad_norm=norm,
        peak_memory_gib=trainer.meter.in_use() if on_gpu else None,
        peak_reserved_gib=trainer.meter.reserved() if on_gpu else None,
    )


class _Trainer:
    """A minimal training loop: model, optimiser and step."""

    def __init__(self, spec: TrialSpec, device: Any) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from trainables.deepspeed_llm.memory import CpuPeakMemory, CudaPeakMemory

        self.device, self._spec, model = device, spec, spec.model
        self.meter = CudaPeakMemory() if device.type == "cuda" else CpuPeakMemory()
        config = LlamaConfig(
            num_hidden_layers=model.num_hidden_layers,
            hidden_size=model.hidden_size,
            intermediate_size=model.intermediate_size,
            num_attention_heads=model.num_attention_heads,
            num_key_value_heads=model.num_key_value_heads,
            vocab_size=model.vocab_size,
            max_position_embeddings=model.sequence_length,
            attn_implementation="sdpa",
            tie_word_embeddings=False,
            use_cache=False,
        )
        dtype = torch.bfloat16 if spec.precision == "bf16" else torch.float32
        torch.manual_seed(spec.seed)
        with torch.device(device):
            self.model = LlamaForCausalLM(config).to(dtype).train()
        self._weights = list(self.model.parameters())
        self._masters = self._weights
        if spec.precision == "bf16":
            self._masters = [
                torch.nn.Parameter(weight.detach().float()) for weight in self._weights
            ]
        self._optimizer = torch.optim.AdamW(self._masters, lr=3e-4, weight_decay=0.1, fused=True)

    def batch(self) -> Any:
        """Random tokens of one step, [global_batch_size, sequence_length]."""
        import torch

        model = self._spec.model
        shape = (model.global_batch_size, model.sequence_length)
        return torch.randint(model.vocab_size, shape, device=self.device)

    def step(self, batch: Any) -> tuple[float, float]:
        """One optimiser step; returns loss and gradient norm."""
        import torch

        layout = self._spec.layout
        total = torch.zeros((), device=self.device)
        for tokens in batch.split(layout.micro_batch_size):
            loss = self.model(input_ids=tokens, labels=tokens).loss
            loss = loss / layout.gradient_accumulation_steps
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        for weight, master in zip(self._weights, self._masters, strict=True):
            if master is not weight:
                assert weight.grad is not None
                master.grad, weight.grad = weight.grad.float(), None
        self._optimizer.step()
        with torch.no_grad():
            for weight, master in zip(self._weights, self._masters, strict=True):
                if master is not weight:
                    weight.copy_(master)
        self._optimizer.zero_grad(set_to_none=True)
        return float(total), float(norm)
