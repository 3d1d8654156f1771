"""The worker's autograd functions, compared with the PyTorch expressions that they replace."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from autotune.model import Activation, RopeScaling
from trainables.deepspeed_llm import loss as loss_module
from trainables.deepspeed_llm import pointwise
from trainables.deepspeed_llm.grouped import grouped_gated_linear
from trainables.deepspeed_llm.kernels import attention
from trainables.deepspeed_llm.loss import capped, linear_cross_entropy
from trainables.deepspeed_llm.pointwise import activated_linear, gated_linear, rotate, rotated_heads
from trainables.deepspeed_llm.rotary import rotary_table
from trainables.deepspeed_llm.tensor_parallel import TensorParallel

SEQUENCE, BATCH, HIDDEN, VOCABULARY = 6, 3, 8, 11


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    weights = torch.linspace(0.5, 1.5, value.numel()).reshape(value.shape)
    return [value, *torch.autograd.grad((value * weights).sum(), leaves)]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("at_a_time", [10**9, 5 * VOCABULARY, VOCABULARY, 1])
def test_the_loss_in_parts_is_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, at_a_time: int, cap: float | None
) -> None:
    monkeypatch.setattr(loss_module, "LOGITS_AT_A_TIME", at_a_time)
    hidden = torch.randn(SEQUENCE, BATCH, HIDDEN)
    weight = torch.randn(VOCABULARY, HIDDEN)
    targets = torch.randint(VOCABULARY, (BATCH, SEQUENCE))
    assert_same(
        gradients(
            lambda h, w: linear_cross_entropy(h, w, targets, TensorParallel(), cap), hidden, weight
        ),
        gradients(
            lambda h, w: F.cross_entropy(capped(h @ w.T, cap).permute(1, 2, 0), targets),
            hidden,
            weight,
        ),
    )


def test_the_loss_of_a_sure_model_keeps_its_small_gradient_in_bf16() -> None:
    # softmax - 1 of the target is -0.0007: rounding the softmax first would make it zero.
    hidden = torch.tensor([[[1.0, 0.0]]], dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[7.25, 0.0], [0.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    linear_cross_entropy(hidden, weight, torch.tensor([[0]]), TensorParallel()).backward()
    assert float(weight.grad[0, 0]) == pytest.approx(-0.000709, rel=0.01)


def test_the_loss_without_gradients_is_the_same() -> None:
    hidden, weight = torch.randn(SEQUENCE, BATCH, HIDDEN), torch.randn(VOCABULARY, HIDDEN)
    targets = torch.randint(VOCABULARY, (BATCH, SEQUENCE))
    expected = F.cross_entropy((hidden @ weight.T).permute(1, 2, 0), targets)
    torch.testing.assert_close(
        linear_cross_entropy(hidden, weight, targets, TensorParallel()), expected
    )
    trained = weight.requires_grad_()
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        linear_cross_entropy(hidden, trained, targets, TensorParallel())
    assert counted.get_total_flops() == 2 * SEQUENCE * BATCH * HIDDEN * VOCABULARY


def test_rotation_is_that_of_rotate_half() -> None:
    cosine, sine = rotary_table(SEQUENCE, 8, 10_000.0, torch.device("cpu"), torch.float32)

    def plain(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        return x * cosine[:, None, None] + turned * sine[:, None, None]

    x = torch.randn(SEQUENCE, BATCH, 2, 8)
    assert_same(gradients(lambda x: rotate(x, cosine, sine), x), gradients(plain, x))


@pytest.mark.parametrize("rotated", [8, 4])
def test_heads_of_one_product_are_split_and_rotated(rotated: int) -> None:
    table = rotary_table(SEQUENCE, rotated, 10_000.0, torch.device("cpu"), torch.float32)
    counts = [4, 2, 2]

    def one_by_one(heads: Tensor) -> Tensor:
        query, key, value = heads.split(counts, dim=2)
        turned = [
            torch.cat((rotate(x[..., :rotated], *table), x[..., rotated:]), -1)
            for x in (query, key)
        ]
        return torch.cat((*turned, value), dim=2)

    heads = torch.randn(SEQUENCE, BATCH, 8, 8)
    assert_same(
        gradients(lambda heads: torch.cat(rotated_heads(heads, counts, *table), dim=2), heads),
        gradients(one_by_one, heads),
    )


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    cosine, sine = rotary_table(32, 8, 10_000.0, torch.device("cpu"), torch.float32)
    query, key = torch.randn(8), torch.randn(8)
    queries, keys = (rotate(x.expand(32, 1, 1, 8), cosine, sine)[:, 0, 0] for x in (query, key))
    torch.testing.assert_close(queries.norm(dim=-1), query.norm().expand(32))
    scores = queries @ keys.T
    torch.testing.assert_close(scores[5, 3], scores[25, 23])


def test_the_gated_matrix_is_silu_times_up() -> None:
    gate_and_up, weight = torch.randn(SEQUENCE, BATCH, 10), torch.randn(HIDDEN, 5)
    assert_same(
        gradients(gated_linear, gate_and_up, weight),
        gradients(lambda x, w: F.linear(F.silu(x[..., :5]) * x[..., 5:], w), gate_and_up, weight),
    )


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu_squared": lambda x: F.relu(x) ** 2,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_matrices_after_an_activation_are_the_written_ones(activation: Activation) -> None:
    x, weight, act = (
        torch.randn(SEQUENCE, BATCH, 10),
        torch.randn(HIDDEN, 5),
        ACTIVATIONS[activation],
    )
    assert_same(
        gradients(lambda x, w: gated_linear(x, w, activation), x, weight),
        gradients(lambda x, w: F.linear(act(x[..., :5]) * x[..., 5:], w), x, weight),
    )
    x = x[..., :5]
    assert_same(
        gradients(lambda x, w: activated_linear(x, w, activation), x, weight),
        gradients(lambda x, w: F.linear(act(x), w), x, weight),
    )


@pytest.mark.parametrize("counts", [[2, 0, 4], [0, 6, 0], [1, 2, 3]])
def test_grouped_matrices_are_those_of_each_group(counts: list[int]) -> None:
    def one_by_one(rows: Tensor, gate_ups: Tensor, downs: Tensor) -> Tensor:
        return torch.cat(
            [
                gated_linear(F.linear(group, gate_up), down, "gelu")
                for group, gate_up, down in zip(rows.split(counts), gate_ups, downs, strict=True)
            ]
        )

    rows, gate_ups = torch.randn(6, HIDDEN), torch.randn(3, 10, HIDDEN)
    downs = torch.randn(3, HIDDEN, 5)
    assert_same(
        gradients(lambda *x: grouped_gated_linear(*x, counts, "gelu"), rows, gate_ups, downs),
        gradients(one_by_one, rows, gate_ups, downs),
    )


def test_scaled_frequencies_are_kept_or_divided() -> None:
    scaling = RopeScaling(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    )
    tables = [
        rotary_table(2, 64, 10_000.0, torch.device("cpu"), torch.float32, s)
        for s in (None, scaling)
    ]
    plain, scaled = (sine[1, :32].asin() for _, sine in tables)
    torch.testing.assert_close(scaled[1:4], plain[1:4])  # many turns within the 64 positions
    torch.testing.assert_close(scaled[-8:], plain[-8:] / 8)  # less than one


@pytest.mark.parametrize("options", [{"cap": 1e5}, {"window": 6}, {"window": 6, "cap": 1e5}])
def test_wide_windows_and_high_caps_change_nothing(options: dict[str, Any]) -> None:
    inputs = [torch.randn(2, heads, 6, 8) for heads in (4, 2, 2)]
    for scale in (None, 0.3):
        assert_same(
            gradients(attention("math", scale=scale, **options), *inputs),
            gradients(attention("math", scale=scale), *inputs),
        )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("_rotated", {}),
        ("_split_and_rotated", {"rotated": 2}),
        ("_rotated_back", {}),
        ("gated", {}),
        ("gated_backward", {}),
        ("_activated_backward", {}),
    ],
)
def test_what_gpus_compile_traces_whole_and_says_the_same(
    name: str, options: dict[str, int]
) -> None:
    """Traced as on a GPU, but executed eagerly: the fused GPU kernels cannot run on a CPU."""
    function = getattr(pointwise, name).__wrapped__
    traced = torch.compile(function, dynamic=False, fullgraph=True, backend="aot_eager")
    table = rotary_table(SEQUENCE, 8, 10_000.0, torch.device("cpu"), torch.float32)
    for batch in (1, BATCH):
        heads = [torch.randn(SEQUENCE, batch, count, 8) for count in (3, 2, 1)]
        gradient, inner = (torch.randn(SEQUENCE, batch, width) for width in (6, 12))
        inputs = {
            "_rotated": (heads[0], *table),
            "_split_and_rotated": (heads[0], *table),
            "_rotated_back": (*heads, *table),
            "gated": (inner,),
            "gated_backward": (gradient, inner),
            "_activated_backward": (gradient, gradient),
        }[name]
        torch.testing.assert_close(traced(*inputs, **options), function(*inputs, **options))


def test_what_cannot_be_compiled_runs_as_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = []

    def no_compiler(function: Callable[..., Tensor], **_: object) -> Callable[..., Tensor]:
        def fail(*args: Tensor) -> Tensor:
            tries.append(args)
            raise torch._dynamo.exc.TorchDynamoException("Failed to find C compiler")

        return fail

    monkeypatch.setattr(pointwise, "_is_compiled", lambda tensor: True)
    monkeypatch.setattr(torch, "compile", no_compiler)
    double = pointwise.one_kernel(lambda x: 2 * x)
    for _ in range(2):
        assert torch.equal(double(torch.ones(3)), torch.full((3,), 2.0))
    assert len(tries) == 1
    assert capsys.readouterr().err.count("is not compiled: Failed to find C compiler") == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_gpus_compile_of_the_loss_says_the_same(dtype: torch.dtype) -> None:
    def softmax(log_sum_exp: Callable[..., Tensor], turn: Callable[..., None]) -> Tensor:
        logits = torch.linspace(-3, 3, 5 * VOCABULARY).reshape(5, VOCABULARY).to(dtype)
        turn(logits, log_sum_exp(logits))
        return logits

    functions = [loss_module._log_sum_exp.__wrapped__, loss_module._turn_into_softmax.__wrapped__]
    traced = [
        torch.compile(f, dynamic=False, fullgraph=True, backend="aot_eager") for f in functions
    ]
    found = softmax(*functions)
    torch.testing.assert_close(softmax(*traced), found)
    torch.testing.assert_close(found.float().sum(-1), torch.ones(5), atol=0.02, rtol=0.02)
