"""Section 3: microbenchmarks of the operations of a layer, by size.

Matrix products, attention and memory bandwidth are each timed alone, not within a training step.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.on_gpu.rows import WIDTHS

_SECONDS_PER_TIMING = 0.03
_HEAD_SIZE = 128
_FULL = {
    "tokens": (4096, 16_384),
    "widths": ("7b", "13b", "30b", "70b"),
    "vocabulary": 32_000,
    "lengths": (1024, 2048, 4096, 8192, 16_384),
    "attention_tokens": 16_384,
    "heads": 40,
    "copied_bytes": 2**32,
    "optimised_parameters": 2**29,
}
_SMALL = {
    "tokens": (256,),
    "widths": ("small",),
    "vocabulary": 512,
    "lengths": (64, 128, 256),
    "attention_tokens": 256,
    "heads": 4,
    "copied_bytes": 2**24,
    "optimised_parameters": 2**18,
}


def device_facts(device_kind: str) -> dict[str, Any]:
    """Properties of the device and versions of its libraries, from torch; nulls on CPUs."""
    import torch

    names = ("name", "total_memory_gib", "multiprocessors", "cuda", "cudnn", "nccl")
    if device_kind != "gpu":
        return dict.fromkeys(names)
    properties = torch.cuda.get_device_properties(0)
    values = (
        properties.name,
        properties.total_memory / 2**30,
        properties.multi_processor_count,
        torch.version.cuda,
        torch.backends.cudnn.version(),
        ".".join(map(str, torch.cuda.nccl.version())),
    )
    return dict(zip(names, values, strict=True))


def matrix_products(device_kind: str) -> list[dict[str, Any]]:
    """TFLOP/s of the three products of each weight matrix: outputs (forward pass), gradients of the
    inputs and of the weights (backward pass)."""
    import torch

    sizes, device, dtype = _setting(device_kind)
    points = []
    for tokens, width in itertools.product(sizes["tokens"], sizes["widths"]):
        hidden, inner, *_ = WIDTHS[width]
        matrices = (hidden, hidden), (hidden, inner), (inner, hidden), (hidden, sizes["vocabulary"])
        for inputs, outputs in matrices:
            randn = functools.partial(torch.randn, device=device, dtype=dtype)
            x, weight = randn(tokens, inputs), randn(outputs, inputs)
            gradient = randn(tokens, outputs)
            flops = 2 * tokens * inputs * outputs
            for rows, columns, left, right in (
                (tokens, outputs, x, weight.t()),
                (tokens, inputs, gradient, weight),
                (outputs, inputs, gradient.t(), x),
            ):
                seconds = _seconds(functools.partial(torch.mm, left, right))
                points.append({"rows": rows, "columns": columns, "tflops": flops / seconds / 1e12})
    return points


def attention(device_kind: str, kernel: str) -> list[dict[str, Any]]:
    """TFLOP/s of causal attention, forward and backward, by sequence length.

    FLOPs of the causal half only."""
    import torch

    from trainables.deepspeed_llm import kernels

    sizes, device, dtype = _setting(device_kind)
    attend = kernels.attention(kernel)  # type: ignore[arg-type]
    points = []
    for length in sizes["lengths"]:
        batch, heads = max(1, sizes["attention_tokens"] // length), sizes["heads"]
        shape = (length, batch, heads, _HEAD_SIZE)
        query, key, value = (
            torch.randn(shape, device=device, dtype=dtype).permute(1, 2, 0, 3).requires_grad_()
            for _ in range(3)
        )
        gradient = torch.randn_like(attend(query, key, value))

        def forward_and_backward(
            query: Any = query, key: Any = key, value: Any = value, gradient: Any = gradient
        ) -> None:
            torch.autograd.grad(attend(query, key, value), (query, key, value), gradient)

        # Two matrix products forward and five backward; the causal mask leaves half of each.
        flops = (2 + 5) * 2 * batch * heads * length**2 * _HEAD_SIZE / 2
        seconds = _seconds(forward_and_backward)
        points.append({"sequence_length": length, "tflops": flops / seconds / 1e12})
    return points


def bandwidth(device_kind: str) -> dict[str, float]:
    """Memory bandwidth (read plus write) in GB/s of a copy and of each element-wise operation."""
    import torch

    from trainables.deepspeed_llm import loss, pointwise
    from trainables.deepspeed_llm.kernels import rms_norm
    from trainables.deepspeed_llm.llama import rotary_table

    sizes, device, dtype = _setting(device_kind)
    tokens = sizes["tokens"][-1]
    hidden, inner, heads, _ = WIDTHS[sizes["widths"][len(sizes["widths"]) // 3]]
    element = 2 if dtype == torch.bfloat16 else 4
    randn = functools.partial(torch.randn, device=device, dtype=dtype)

    gb_per_second = {"copy": _copied_gb_per_second(sizes["copied_bytes"], device)}

    x, weight = randn(tokens, 1, hidden).requires_grad_(), randn(hidden).requires_grad_()
    norm = functools.partial(rms_norm, x, weight, 1e-5, "fused")
    moved = {"rms_norm": (_forward_backward_seconds(norm, (x, weight)), 7 * tokens * hidden)}
    with torch.no_grad():
        added = _seconds(lambda: x + x)
    moved["add"] = (added, 2 * tokens * hidden)  # x + x reads one tensor and writes one

    query = randn(tokens, 1, heads, hidden // heads).requires_grad_()
    table = rotary_table(tokens, hidden // heads, 10_000.0, device, dtype)
    rotate = functools.partial(pointwise.rotate, query, *table)
    moved["rotation"] = (_forward_backward_seconds(rotate, (query,)), 4 * tokens * hidden)

    with torch.no_grad():
        gate, up, gradient = (randn(tokens, 1, inner) for _ in range(3))
        forward = _seconds(lambda: pointwise._gated(gate, up))
        backward = _seconds(lambda: pointwise._gated_backward(gradient, gate, up))
    moved["gate"] = (forward + backward, 9 * tokens * inner)

    logits = randn(min(tokens, 8192), sizes["vocabulary"])

    def softmax() -> None:
        loss._turn_into_softmax(logits, loss._log_sum_exp(logits))

    # log-sum-exp: two reads, for maximum and sum. Softmax: one read, one write.
    moved["loss"] = (_seconds(softmax), 4 * logits.numel())
    gb_per_second |= {
        name: count * element / seconds / 1e9 for name, (seconds, count) in moved.items()
    }
    gb_per_second["optimizer"] = _optimizer_gb_per_second(sizes["optimised_parameters"], device)
    return gb_per_second


def _copied_gb_per_second(count: int, device: Any) -> float:
    import torch

    source = torch.empty(count, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * count / _seconds(lambda: target.copy_(source)) / 1e9


def _optimizer_gb_per_second(count: int, device: Any) -> float:
    import torch

    parameter = torch.nn.Parameter(torch.randn(count, device=device))
    parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    return 28 * count / _seconds(optimizer.step) / 1e9


def _forward_backward_seconds(function: Callable[[], Any], inputs: Sequence[Any]) -> float:
    import torch

    gradient = torch.randn_like(function())
    return _seconds(lambda: torch.autograd.grad(function(), inputs, gradient, allow_unused=True))


def _seconds(function: Callable[[], Any]) -> float:
    """Mean time of successive calls; torch's Timer synchronises with the GPU before and after."""
    from torch.utils.benchmark import Timer

    timer = Timer("function()", globals={"function": function})
    timer.timeit(1)  # warm-up: selects and loads the kernels
    estimate = timer.timeit(2).mean
    return float(timer.timeit(max(3, int(_SECONDS_PER_TIMING / estimate))).mean)


def _setting(device_kind: str) -> tuple[dict[str, Any], Any, Any]:
    import torch

    if device_kind == "gpu":
        return _FULL, torch.device("cuda"), torch.bfloat16
    torch.set_num_threads(1)
    return _SMALL, torch.device("cpu"), torch.float32
