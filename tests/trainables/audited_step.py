"""Run as a module: trains layouts and prints synchronisations, traffic and peak memory of a step.

    python -m tests.trainables.audited_step '[[{"micro_batch_size": 4}, {"hidden_size": 256, ...}]]'

Each pair of a layout and a model is trained in a process of its own, forked after importing torch.
A line of JSON for each: `waits`, the stack of each host synchronisation (read of a tensor's value)
within a step; `update_bytes_per_parameter`, read and written by the optimiser step; and
`peak_bytes`, the peak of torch's allocations. A GPU runs the same operations, so its byte counts
are the same.
"""

import json
import multiprocessing
import os
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from autotune.layout import layout_from_mapping
from autotune.model import Model
from autotune.trial import deepspeed_config as configuration
from autotune.trial.deepspeed_config import deepspeed_config, worker_environment

_WAITING = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero")
_FUSED_ADAMW = 28  # bytes per parameter: reads four tensors of fp32 and writes three


class _FusedRmsNorm(torch.autograd.Function):
    """Saves the same tensors as CUDA's fused kernel: torch's CPU implementation saves more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale * weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        towards_weight = (gradient * x * scale).sum((0, 1)).to(weight.dtype)
        return (gradient * weight * scale).to(x.dtype), towards_weight, None


class _Audit(TorchDispatchMode):
    """Counts bytes that operations read and write, and records host synchronisations."""

    def __init__(self) -> None:
        super().__init__()
        self.moved_bytes = 0
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func)
        if name.startswith(_WAITING):
            self.waits.append("".join(traceback.format_stack()))
        inputs, outputs = list(_tensors(args)), list(_tensors(result))
        seen = {tensor.untyped_storage()._cdata for tensor in inputs}
        fresh = [t for t in outputs if t.untyped_storage()._cdata not in seen]
        in_place = name.split(".")[1].endswith("_")
        if name.startswith("aten._fused_adamw_"):
            self.moved_bytes += _FUSED_ADAMW * sum(t.numel() for t in args[0])
        elif fresh or in_place:
            read = inputs[1:] if name.startswith("aten.copy_") else inputs
            written = inputs[:1] if in_place else fresh
            self.moved_bytes += sum(t.numel() * t.element_size() for t in (*read, *written))
        return result


def _tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def main() -> None:
    """Audit the cases, two at a time; prints in their order."""
    os.environ.update(worker_environment("cpu"))
    from trainables.deepspeed_llm.preload import import_what_ranks_need

    import_what_ranks_need()
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        for found in pool.starmap(audit, json.loads(sys.argv[1]), chunksize=1):
            print(json.dumps(found), flush=True)


def audit(of_layout: dict[str, Any], of_model: dict[str, Any]) -> dict[str, Any]:
    """Profile two steps for the peak memory of the second, then audit a third."""
    model = Model(**of_model)
    layout = layout_from_mapping(of_layout, model)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_SIZE="1")
    os.environ.update(LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    # Scales the communication bucket down with the model: by default it would exceed the model.
    configuration.LARGEST_BUCKET = configuration.SMALLEST_BUCKET

    from trainables.deepspeed_llm import norms
    from trainables.deepspeed_llm.build import Build
    from trainables.deepspeed_llm.engine import Mesh, build_engine
    from trainables.deepspeed_llm.rank import Place, process_group

    plain = norms.rms_norm
    norms.rms_norm = lambda x, weight, epsilon, kernel: (
        _FusedRmsNorm.apply(x, weight, epsilon)
        if kernel == "fused"
        else plain(x, weight, epsilon, kernel)
    )
    with process_group(Place(rank=0, local_rank=0, world_size=1), "cpu") as device:
        mesh = Mesh(layout)
        build = Build(
            model=model, layout=layout, parallel=mesh.parallel, device=device, dtype=torch.bfloat16
        )
        config = deepspeed_config(layout, model, precision="bf16", overlap_communication=False)
        tokens = torch.zeros(model.global_batch_size, model.sequence_length, dtype=torch.long)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            engine = build_engine(build, mesh, config)
            for _ in range(2):
                engine.step((tokens, tokens))
        audit, update = _Audit(), _Audit()
        optimiser: Any = engine._engine.optimizer  # type: ignore[attr-defined]
        real_update = optimiser.step

        def audited_update(*args: Any) -> None:
            with update:
                real_update(*args)

        optimiser.step = audited_update
        with audit:
            engine.step((tokens, tokens))
    waits = [
        wait
        for wait in audit.waits + update.waits
        # The loss and the norm at the end of the step; fused AdamW on GPUs has no such line.
        if "_grad_norm(" not in wait and "loss_mean" not in wait and "torch/optim/" not in wait
    ]
    return {
        "waits": waits,
        "update_bytes_per_parameter": update.moved_bytes / model.parameters,
        "peak_bytes": _peak_bytes(profiled),
    }


def _peak_bytes(profiled: Any) -> int:
    """Peak of the bytes allocated minus freed by torch's allocator."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted(
        (event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"
    )
    now = peak = 0
    for number, (_, change) in enumerate(changes):
        now += change
        if number > len(changes) // 2:  # the first step also made the model and the moments
            peak = max(peak, now)
    return peak


if __name__ == "__main__":
    main()
