"""Every architecture of the registry, compared with Hugging Face's implementation."""

import copy
import dataclasses
import functools
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from autotune.errors import InputError
from autotune.layout import Layout, why_illegal
from autotune.model import Experts, LatentAttention, Model
from autotune.models import architectures
from tests.trainables.reference import plain_decoder
from tests.trainables.small_models import CONFIGS, SEQUENCE, WINDOW, as_ours, small_model
from trainables.deepspeed_llm.description import check_model
from trainables.deepspeed_llm.kernels import attention


@functools.cache
def hugging_face(name: str) -> PreTrainedModel:
    torch.manual_seed(3)
    # Large initial weights: small ones would hide a wrong rotation.
    values = {**copy.deepcopy(CONFIGS[name]), "initializer_range": 0.1}
    config = AutoConfig.for_model(**values)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases, which begin as ones or zeros
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def with_their_weights(name: str, layout: Layout) -> torch.nn.Module:
    ours = plain_decoder(small_model(name), layout)
    ours.load_state_dict(as_ours(hugging_face(name).state_dict(), small_model(name)), strict=True)
    return ours


def layouts(model: Model) -> list[Layout]:
    """Kernels that the model can have."""
    all_kernels = [
        Layout(attention_kernel="math", rmsnorm_kernel="plain"),
        Layout(attention_kernel="math", rmsnorm_kernel="fused"),
        Layout(attention_kernel="sdpa_flash", rmsnorm_kernel="fused"),
    ]
    return [layout for layout in all_kernels if why_illegal(layout, model, "fp32") is None]


def batch(model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    # Not 0, which is Gemma's padding: Hugging Face's embedding gets no gradient of it.
    tokens = torch.randint(1, model.vocab_size, (3, SEQUENCE + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def test_every_architecture_is_compared_and_trained() -> None:
    compared = {small_model(name).architecture for name in CONFIGS}
    assert compared == set(architectures())
    for name in CONFIGS:
        check_model(small_model(name))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_loss_and_gradients_equal_hugging_faces(name: str) -> None:
    model, theirs = small_model(name), hugging_face(name)
    inputs, targets = batch(model)
    theirs.zero_grad()
    their_logits = theirs(inputs).logits
    their_loss = torch.nn.functional.cross_entropy(their_logits.flatten(0, 1), targets.flatten())
    their_loss.backward()
    their_gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for layout in layouts(model):
        ours = with_their_weights(name, layout)
        with torch.no_grad():
            our_logits = ours.logits(inputs).transpose(0, 1)
        torch.testing.assert_close(our_logits, their_logits.detach(), atol=1e-5, rtol=1e-5)
        loss = ours(inputs, targets)
        assert float(loss.detach()) == pytest.approx(float(their_loss.detach()), abs=1e-5)
        loss.backward()
        expected = as_ours(their_gradients, model)
        found = {name: parameter.grad for name, parameter in ours.named_parameters()}
        assert found.keys() == expected.keys()
        for parameter, gradient in found.items():
            largest = float(expected[parameter].abs().max())
            difference = float((gradient - expected[parameter]).abs().max())
            assert difference <= 1e-5 * max(1.0, largest), parameter


@pytest.mark.parametrize("name", CONFIGS)
def test_parameter_count_is_hugging_faces(name: str) -> None:
    model = small_model(name)
    expected = sum(parameter.numel() for parameter in hugging_face(name).parameters())
    assert model.parameters == expected
    assert sum(p.numel() for p in plain_decoder(model).parameters()) == expected


def test_kernels_without_a_window_are_dropped_with_the_reason() -> None:
    local = dataclasses.replace(small_model("llama"), sliding_window=WINDOW)
    flash = Layout(attention_kernel="sdpa_flash", micro_batch_size=2)
    reason = why_illegal(flash, local, "fp32")
    assert reason is not None and "has no sliding window" in reason and "5 tokens" in reason
    assert why_illegal(dataclasses.replace(flash, attention_kernel="math"), local, "fp32") is None
    whole = dataclasses.replace(local, sliding_window=SEQUENCE)
    assert why_illegal(flash, whole, "fp32") is None, "the window is as long as the sequence"
    capped = dataclasses.replace(small_model("llama"), attention_softcap=50.0)
    reason = why_illegal(flash, capped, "fp32")
    assert reason is not None and "cannot cap scores" in reason
    for options in ({"window": WINDOW}, {"cap": 50.0}):
        with pytest.raises(ValueError, match="neither a sliding window nor"):
            attention("sdpa_flash", **options)


def test_experts_must_divide() -> None:
    mixtral = small_model("mixtral")
    assert mixtral.experts is not None
    narrow = dataclasses.replace(mixtral.experts, intermediate_size=33)
    model = dataclasses.replace(mixtral, experts=narrow)
    reason = why_illegal(Layout(tensor_parallel=2), model, "fp32")
    assert reason == "tensor_parallel must divide experts.intermediate_size, got 2 and 33"


EXPERTS = Experts(count=4, per_token=2, intermediate_size=32)
LATENT = LatentAttention(
    query_rank=None, key_value_rank=16, plain_head_size=8, rotated_head_size=4, value_head_size=8
)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"parallel_residual": True, "norm_placement": "after"}, "parallel_residual with"),
        ({"latent_attention": LATENT, "qkv_bias": True}, "qkv_bias with latent"),
        ({"latent_attention": LATENT, "qk_norm": "heads"}, "qk_norm with latent"),
        ({"experts": EXPERTS, "mlp_bias": True}, "experts with mlp_bias"),
        ({"experts": EXPERTS, "gated_feed_forward": False}, "experts without gated"),
        (
            {"experts": dataclasses.replace(EXPERTS, shared_gate=True)},
            "experts with a shared_gate",
        ),
    ],
)
def test_what_is_not_trained_is_refused(changes: dict[str, Any], what: str) -> None:
    model = dataclasses.replace(small_model("llama"), **changes)
    with pytest.raises(InputError, match=f"^the DeepSpeed worker does not train {what}"):
        check_model(model)
