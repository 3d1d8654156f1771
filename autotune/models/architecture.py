"""What an architecture declares, and the reading of one Hugging Face config."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from autotune.errors import InputError
from autotune.inputs import shown

# Keys that say nothing of the shape, the arithmetic or the size of a model in training.
_WITHOUT_EFFECT = frozenset({
    "_name_or_path", "architectures", "model_type", "auto_map", "transformers_version",
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id",
    "cls_token_id", "decoder_start_token_id", "unk_token_id", "initializer_range",
    "pretraining_tp", "is_decoder", "is_encoder_decoder", "add_cross_attention",
    "chunk_size_feed_forward", "return_dict", "output_attentions", "output_hidden_states",
    "id2label", "label2id", "torchscript", "_attn_implementation", "attn_implementation",
    "_attn_implementation_autoset", "use_bfloat16", "problem_type", "tokenizer_class",
    "task_specific_params", "finetuning_task", "cache_implementation", "n_ctx",
    "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_logits",
    "summary_first_dropout",
})  # fmt: skip
# Dropout is not trained with: published trainings of these models have none, or little.
_DROPOUT = frozenset({
    "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop",
    "classifier_dropout", "embd_dropout", "residual_dropout",
})  # fmt: skip
_REQUIRED = object()


class Config:
    """The keys of one config.json. What is not taken, and may have an effect, is an error."""

    def __init__(self, values: Mapping[str, Any], what: str) -> None:
        self._values = dict(values)
        self._what = what
        self._left = dict(values)
        self.notes: list[str] = []
        """What is different in training here, in one sentence each."""

    def take(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value of a key; null and a missing key are the default. Raises InputError."""
        value = self._left.pop(key, None)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise InputError(f"{self._what}: {key} is missing")
        return default

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        """As `take`, for a number."""
        value = self.take(key, default)
        if value is not default and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"{self._what}: {key} must be a number, got {shown(value)}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """As `take`, for true or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise InputError(f"{self._what}: {key} must be true or false, got {shown(value)}")
        return value

    def choice(self, key: str, choices: Mapping[str, Any], default: Any = _REQUIRED) -> Any:
        """What `choices` has for the value of a key."""
        value = self.take(key, default)
        if not isinstance(value, str) or value not in choices:
            known = " or ".join(map(repr, choices))
            raise InputError(f"{self._what}: {key} must be {known}, got {shown(value)}")
        return choices[value]

    def ignore(self, *keys: str) -> None:
        """Keys without an effect on training in this architecture."""
        for key in keys:
            self._left.pop(key, None)

    def require(self, key: str, *values: Any) -> None:
        """Raise InputError where the key is given with another value: it is not implemented."""
        value = self._left.pop(key, None)
        if value is None or any(type(value) is type(v) and value == v for v in values):
            return
        known = " or ".join(repr(v) for v in values) or "null"
        raise InputError(f"{self._what}: {key} must be {known}, got {shown(value)}")

    def rest(self) -> dict[str, Any]:
        """What nothing has taken."""
        return dict(self._left)

    def refuse_what_is_left(self) -> None:
        """Raise InputError for keys that nothing has taken and that may have an effect."""
        left = self._left.keys() - _WITHOUT_EFFECT - _DROPOUT
        if left:
            raise InputError(
                f"{self._what}: {shown(min(left))} may change the model, and is not known for "
                f"{self._values.get('model_type', 'this architecture')}"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How configs of one family are read."""

    name: str
    """Name in `Model.architecture`."""
    model_types: tuple[str, ...]
    """Values of `model_type` that it reads."""
    classes: tuple[str, ...]
    """Values of `architectures` that it reads."""
    read: Callable[[Config], dict[str, Any]]
    """The fields of `Model`, batch and precision apart. Raises InputError."""
