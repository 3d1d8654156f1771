"""The model to train: the shape of a Llama-like transformer, and its batch."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from autotune.errors import InputError
from autotune.inputs import Flag, PositiveInt, read_json, shown, validated

Precision = Literal["fp32", "bf16"]

# Keys of a Hugging Face Llama config.json that affect neither step time nor memory.
_IGNORED_KEYS = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "eos_token_id",
        "initializer_range",
        "max_position_embeddings",
        "model_type",
        "pad_token_id",
        "pretraining_tp",
        "rope_parameters",
        "rope_scaling",
        "transformers_version",
        "use_cache",
    }
)
# Keys that select the architecture, with the only value that is implemented.
_REQUIRED_VALUE: dict[str, object] = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
}
_PRECISION_OF_DTYPE: dict[str, Precision] = {"float32": "fp32", "bfloat16": "bf16"}


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Model:
    """A Llama model and its batch. Field names are those of Hugging Face."""

    num_hidden_layers: Annotated[int, Field(strict=True, ge=1, le=100_000)]
    """Transformer blocks."""
    hidden_size: PositiveInt
    """Width of the residual stream."""
    intermediate_size: PositiveInt
    """Width of the feed-forward network."""
    num_attention_heads: PositiveInt
    """Query heads."""
    num_key_value_heads: PositiveInt
    """Key and value heads; fewer than query heads is grouped-query attention."""
    vocab_size: PositiveInt
    """Rows of each embedding matrix."""
    sequence_length: PositiveInt
    """Tokens per sequence."""
    global_batch_size: PositiveInt
    """Sequences per optimiser step, over all data-parallel ranks."""
    rms_norm_eps: Annotated[float, Field(strict=True, gt=0, lt=1)] = 1e-5
    """Epsilon of RMSNorm, added to the mean square."""
    rope_theta: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 10_000.0
    """Base of the rotary embedding frequencies."""
    gated_feed_forward: Flag = True
    """Whether the feed-forward network has a gate (SwiGLU: three matrices); else it has two."""
    tie_word_embeddings: Flag = False
    """Whether the output matrix is the input embedding: one matrix in place of two."""
    precision: Precision | None = None
    """Precision of weights and activations; None: bf16 on GPUs and fp32 on CPUs."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                "num_attention_heads must divide hidden_size, "
                f"got {self.num_attention_heads} and {self.hidden_size}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                "num_key_value_heads must divide num_attention_heads, "
                f"got {self.num_key_value_heads} and {self.num_attention_heads}"
            )
        if self.head_size % 2:
            raise ValueError(
                "hidden_size / num_attention_heads must be even for rotary embeddings, "
                f"got {self.head_size}"
            )

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimiser step."""
        return self.sequence_length * self.global_batch_size

    @property
    def layer_parameters(self) -> int:
        """Parameters of one transformer block, its two norms included."""
        key_value_size = self.head_size * self.num_key_value_heads
        attention = 2 * self.hidden_size * self.hidden_size + 2 * self.hidden_size * key_value_size
        feed_forward = self.feed_forward_matrices * self.hidden_size * self.intermediate_size
        return attention + feed_forward + 2 * self.hidden_size

    @property
    def feed_forward_matrices(self) -> int:
        """Weight matrices of a feed-forward network."""
        return 3 if self.gated_feed_forward else 2

    @property
    def parameters(self) -> int:
        """All parameters, embeddings included."""
        blocks = self.num_hidden_layers * self.layer_parameters
        return blocks + self.embedding_parameters + self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the input embedding and the output matrix."""
        matrices = 1 if self.tie_word_embeddings else 2
        return matrices * self.vocab_size * self.hidden_size

    @property
    def model_flops_per_token(self) -> float:
        """FLOPs per token as MFU counts them: 6 N + 12 L h s, attention not halved.

        Source: Hagemann et al. 2023 (arXiv 2311.05610), after Chowdhery et al. 2022, appendix B.
        """
        attention = 12 * self.num_hidden_layers * self.hidden_size * self.sequence_length
        return float(6 * self.parameters + attention)

    def hardware_flops_per_token(self, activation_checkpointing: str) -> float:
        """FLOPs per token that the hardware executes, recomputation included.

        The embedding look-up costs no FLOPs, causal attention computes half of the score matrix, a
        backward pass costs two forward passes, and checkpointing adds the forward pass of what it
        recomputes (Korthikanti et al. 2022, arXiv 2205.05198, appendix A).
        """
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        head = self.vocab_size * self.hidden_size
        blocks = self.parameters - self.embedding_parameters - norms
        forward_attention = 2 * self.num_hidden_layers * self.hidden_size * self.sequence_length
        forward = 2 * (blocks + head) + forward_attention
        recomputed = {
            "none": 0,
            "selective": forward_attention,
            "full": 2 * blocks + forward_attention,
        }[activation_checkpointing]
        return float(3 * forward + recomputed)


def load_model(path: str, *, sequence_length: int, global_batch_size: int) -> Model:
    """The model of a Hugging Face config.json, trained on that batch. Raises InputError."""
    batch = {"sequence_length": sequence_length, "global_batch_size": global_batch_size}
    return model_from_mapping({**read_json(path, what="model"), **batch})


def model_from_mapping(values: Mapping[str, Any], *, what: str = "model") -> Model:
    """Read a model from Hugging Face's names plus sequence_length and global_batch_size.

    A Hugging Face config.json can be passed unchanged: keys without effect are ignored, keys that
    select the architecture must have the implemented value, and any other unknown key is an error.
    Raises InputError.
    """
    fields = dict(values)
    for key in _IGNORED_KEYS & fields.keys():
        del fields[key]
    for key, required in _REQUIRED_VALUE.items():
        value = fields.pop(key, required)
        if type(value) is not type(required) or value != required:
            raise InputError(f"{what}: {key} must be {shown(required)}, got {shown(value)}")
    for key in ("dtype", "torch_dtype"):
        if key in fields:
            dtype = fields.pop(key)
            if not isinstance(dtype, str) or dtype not in _PRECISION_OF_DTYPE:
                known = " or ".join(_PRECISION_OF_DTYPE)
                raise InputError(f"{what}: {key} must be {known}, got {shown(dtype)}")
            fields.setdefault("precision", _PRECISION_OF_DTYPE[dtype])
    head_size = fields.pop("head_dim", None)
    fields.setdefault("num_key_value_heads", fields.get("num_attention_heads"))
    model = validated(Model, fields, what=what)
    if head_size not in (None, model.head_size):
        raise InputError(
            f"{what}: head_dim must be hidden_size / num_attention_heads = {model.head_size}, "
            f"got {shown(head_size)}"
        )
    return model
