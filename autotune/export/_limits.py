"""What programs cannot express of layouts and models, as sentences."""

from collections.abc import Callable, Collection, Mapping

from autotune.errors import InputError
from autotune.inputs import listed, shown
from autotune.layout import Layout
from autotune.model import Model
from autotune.request import Request

_FEATURES: Mapping[str, Callable[[Model], object]] = {
    "learned positions": lambda m: m.positions == "learned",
    "partly rotated heads": lambda m: m.positions == "rotary" and m.rotary_fraction < 1,
    "scaled rotary frequencies": lambda m: m.rope_scaling,
    "another rotary base in local blocks": lambda m: m.local_rope_theta not in (None, m.rope_theta),
    "a feed-forward network without a gate": lambda m: not m.gated_feed_forward,
    "another activation than SiLU": lambda m: m.activation != "silu",
    "tied embeddings": lambda m: m.tie_word_embeddings,
    "biases of queries, keys and values": lambda m: m.qkv_bias,
    "a bias of the attention's output": lambda m: m.attention_output_bias,
    "biases of the feed-forward network": lambda m: m.mlp_bias,
    "LayerNorm": lambda m: m.norm == "layernorm",
    "norms after attention and feed-forward network": lambda m: m.norm_placement != "before",
    "norms that multiply by 1 + weight": lambda m: m.norm_offset,
    "parallel attention and feed-forward network": lambda m: m.parallel_residual,
    "norms of the heads of queries and keys": lambda m: m.qk_norm == "heads",
    "norms of whole queries and keys": lambda m: m.qk_norm == "projection",
    "a sliding window": lambda m: window_of(m) is not None,
    "another scale of the scores": lambda m: m.attention_scale not in (None, m.head_size**-0.5),
    "capped scores": lambda m: m.attention_softcap,
    "capped logits": lambda m: m.logit_softcap,
    "scaled embeddings": lambda m: m.embedding_scale,
    "latent attention": lambda m: m.latent_attention,
    "a mixture of experts": lambda m: m.experts,
    "heads of another width than hidden_size / heads": lambda m: (
        m.latent_attention is None and m.head_size * m.num_attention_heads != m.hidden_size
    ),
}
"""By what a model has that the first Llama has not: whether this model has it."""


def window_of(model: Model) -> int | None:
    """Tokens of the sliding window, where it is shorter than the sequence."""
    windows = {model.window_of(block) for block in range(model.num_hidden_layers)}
    shorter = [w for w in windows if w is not None and w < model.sequence_length]
    return min(shorter, default=None)


def refuse_other_models(request: Request, program: str, expressed: Collection[str]) -> None:
    """Raise InputError where the model has a feature that is not among those expressed."""
    model = request.space.model
    assert set(expressed) <= set(_FEATURES)
    left = [name for name, has in _FEATURES.items() if has(model) and name not in expressed]
    if left:
        raise cannot(request, program, listed(left))


def cannot(request: Request, program: str, what: str) -> InputError:
    """The error for a model that would become another one."""
    kind = shown(request.space.model.architecture)
    return InputError(f"{program} cannot express this {kind} model: {what}")


def refuse_parallel(layout: Layout, program: str, *sizes: str) -> None:
    """Raise InputError where one of these sizes of the layout is not 1."""
    for name in sizes:
        if (size := getattr(layout, name)) != 1:
            raise InputError(
                f"{program} has no {name.replace('_', ' ')}ism: {name} must be 1, got {size}"
            )


def gpu_note(request: Request, program: str) -> list[str]:
    """A note where the layout was found for CPUs and the program trains on GPUs only."""
    if request.space.cluster.device.kind == "gpu":
        return []
    return [f"The layout was found for CPUs; {program} trains on GPUs only."]


def kernel_notes(layout: Layout, kernel: str, program: str) -> list[str]:
    """Notes on the kernel that replaces the layout's, and on a norm that is not fused.

    `kernel`: the program's nearest implementation of attention, or empty for the same one.
    """
    notes = []
    if kernel:
        notes.append(
            f"{program} has no attention kernel {layout.attention_kernel}; nearest: {kernel}."
        )
    if layout.rmsnorm_kernel == "plain":
        notes.append(f"{program} has no RMSNorm of separate operations; its norm is fused.")
    return notes
