"""Times the operations of a layer by size: matrix products, attention, memory traffic.

Each is timed without the rest of a training step. Curves are generators: whoever has no more time
stops after any point.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from trainables.probe.sizes import WIDTHS, Sizes

DeviceKind = Literal["gpu", "cpu"]
Timer = Callable[[Callable[[], Any]], float]
"""Gives the seconds of one call of a function."""

# Attention that writes its scores out needs memory for them, several times over.
_MOST_SCORES = 2**31
_SECONDS_PER_TIMING = 0.03


def device_facts(device_kind: str) -> dict[str, Any]:
    """Properties of the device and versions of its libraries, from torch; nulls on CPUs."""
    import torch

    names = ("name", "total_memory_gib", "multiprocessors", "cuda", "cudnn", "nccl")
    if device_kind != "gpu":
        return dict.fromkeys(names)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    values = (
        properties.name,
        properties.total_memory / 2**30,
        properties.multi_processor_count,
        torch.version.cuda,
        torch.backends.cudnn.version(),
        ".".join(map(str, torch.cuda.nccl.version())),
    )
    return dict(zip(names, values, strict=True))


def matrix_products(
    device_kind: DeviceKind, sizes: Sizes, timer: Timer
) -> Iterator[dict[str, Any]]:
    """TFLOP/s of the three products of each weight matrix: outputs (forward pass), gradients of the
    inputs and of the weights (backward pass). Sizes are in elements."""
    import torch

    device, dtype = _setting(device_kind)
    for tokens, width in itertools.product(sizes.tokens, sizes.widths):
        hidden, inner, *_ = WIDTHS[width]
        matrices = (hidden, hidden), (hidden, inner), (inner, hidden), (hidden, sizes.vocabulary)
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
                seconds = timer(functools.partial(torch.mm, left, right))
                yield {
                    "rows": rows,
                    "columns": columns,
                    "inner": flops // (2 * rows * columns),
                    "seconds": seconds,
                    "tflops": flops / seconds / 1e12,
                }


def attention(
    device_kind: DeviceKind, sizes: Sizes, timer: Timer, kernel: str
) -> Iterator[dict[str, Any]]:
    """TFLOP/s of causal attention, forward and backward, by sequence length.

    FLOPs of the causal half only. `forward_seconds` is the part of the forward pass. `scores` are
    the elements of the whole score matrices."""
    import torch

    from trainables.deepspeed_llm import kernels

    device, dtype = _setting(device_kind)
    attend = kernels.attention(kernel)  # type: ignore[arg-type]
    for length in sizes.lengths:
        batch, heads = max(1, sizes.attention_tokens // length), sizes.heads
        scores = batch * heads * length**2
        if kernel == "math" and scores > _MOST_SCORES:
            return
        shape = (length, batch, heads, sizes.head_size)
        query, key, value = (
            torch.randn(shape, device=device, dtype=dtype).permute(1, 2, 0, 3).requires_grad_()
            for _ in range(3)
        )
        gradient = torch.randn_like(attend(query, key, value))

        def forward(query: Any = query, key: Any = key, value: Any = value) -> None:
            attend(query, key, value)

        def forward_and_backward(
            query: Any = query, key: Any = key, value: Any = value, gradient: Any = gradient
        ) -> None:
            torch.autograd.grad(attend(query, key, value), (query, key, value), gradient)

        # Two matrix products forward and five backward; the causal mask leaves half of each.
        flops = (2 + 5) * 2 * scores * sizes.head_size / 2
        seconds = timer(forward_and_backward)
        yield {
            "sequence_length": length,
            "forward_seconds": timer(forward),
            "seconds": seconds,
            "tflops": flops / seconds / 1e12,
            "scores": scores,
            "head_size": sizes.head_size,
        }


def bandwidth(device_kind: DeviceKind, sizes: Sizes, timer: Timer) -> Iterator[tuple[str, float]]:
    """Memory bandwidth (read plus write) in GB/s of a copy and of each element-wise operation."""
    import torch

    from trainables.deepspeed_llm import loss, pointwise
    from trainables.deepspeed_llm.kernels import rms_norm
    from trainables.deepspeed_llm.rotary import rotary_table

    device, dtype = _setting(device_kind)
    tokens = sizes.tokens[-1]
    hidden, inner, heads, _ = WIDTHS[sizes.widths[len(sizes.widths) // 3]]
    element = 2 if dtype == torch.bfloat16 else 4
    randn = functools.partial(torch.randn, device=device, dtype=dtype)

    def gb_per_second(elements: int, seconds: float) -> float:
        return elements * element / seconds / 1e9

    yield "copy", _copied_gb_per_second(sizes, device, timer)

    x, weight = randn(tokens, 1, hidden).requires_grad_(), randn(hidden).requires_grad_()
    norm = functools.partial(rms_norm, x, weight, 1e-5, "fused")
    seconds = _forward_backward_seconds(norm, (x, weight), timer)
    yield "rms_norm", gb_per_second(7 * tokens * hidden, seconds)
    with torch.no_grad():
        added = timer(lambda: x + x)
    yield "add", gb_per_second(2 * tokens * hidden, added)  # reads one tensor and writes one

    query = randn(tokens, 1, heads, hidden // heads).requires_grad_()
    table = rotary_table(tokens, hidden // heads, 10_000.0, device, dtype)
    rotate = functools.partial(pointwise.rotate, query, *table)
    seconds = _forward_backward_seconds(rotate, (query,), timer)
    yield "rotation", gb_per_second(4 * tokens * hidden, seconds)

    with torch.no_grad():
        gate_and_up, gradient = randn(tokens, 1, 2 * inner), randn(tokens, 1, inner)
        forward = timer(lambda: pointwise.gated(gate_and_up))
        backward = timer(lambda: pointwise.gated_backward(gradient, gate_and_up))
    yield "gate", gb_per_second(9 * tokens * inner, forward + backward)

    logits = randn(min(tokens, 8192), sizes.vocabulary)

    def softmax() -> None:
        loss._turn_into_softmax(logits, loss._log_sum_exp(logits))

    # log-sum-exp: two reads, for maximum and sum. Softmax: one read, one write.
    yield "loss", gb_per_second(4 * logits.numel(), timer(softmax))
    yield "optimizer", _optimizer_gb_per_second(sizes, device, timer)


def _copied_gb_per_second(sizes: Sizes, device: Any, timer: Timer) -> float:
    import torch

    count = sizes.copied_bytes
    source = torch.empty(count, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * count / timer(lambda: target.copy_(source)) / 1e9


def _optimizer_gb_per_second(sizes: Sizes, device: Any, timer: Timer) -> float:
    import torch

    count = sizes.optimised_parameters
    parameter = torch.nn.Parameter(torch.randn(count, device=device))
    parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    return 28 * count / timer(optimizer.step) / 1e9


def _forward_backward_seconds(
    function: Callable[[], Any], inputs: Sequence[Any], timer: Timer
) -> float:
    import torch

    gradient = torch.randn_like(function())
    return timer(lambda: torch.autograd.grad(function(), inputs, gradient, allow_unused=True))


def alone(function: Callable[[], Any]) -> float:
    """Mean seconds of successive calls in this process; torch's Timer synchronises with the GPU
    before and after."""
    from torch.utils.benchmark import Timer

    timer = Timer("function()", globals={"function": function})
    timer.timeit(1)  # warm-up: selects and loads the kernels
    estimate = timer.timeit(2).mean
    return float(timer.timeit(max(3, int(_SECONDS_PER_TIMING / estimate))).mean)


def _setting(device_kind: DeviceKind) -> tuple[Any, Any]:
    """Device and element type of training there."""
    import torch

    if device_kind == "gpu":
        return torch.device("cuda"), torch.bfloat16
    torch.set_num_threads(1)
    return torch.device("cpu"), torch.float32
