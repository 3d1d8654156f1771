"""The worker's Llama, compared with Hugging Face's implementation."""

import dataclasses

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from autotune.layout import Layout
from autotune.model import Model
from autotune.models import model_from_mapping
from tests.trainables.reference import plain_decoder
from tests.trainables.small_models import as_ours


def hugging_face(model: Model) -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_key_value_heads,
        vocab_size=model.vocab_size,
        max_position_embeddings=model.sequence_length,
        rms_norm_eps=model.rms_norm_eps,
        tie_word_embeddings=False,
        attn_implementation="eager",
        initializer_range=0.1,  # large: small weights would hide a wrong rotation
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("key_value_heads", [8, 4, 1])
@pytest.mark.parametrize("kernels", [("math", "plain"), ("sdpa_flash", "fused")])
def test_logits_and_loss_equal_hugging_faces(
    small_model: Model, key_value_heads: int, kernels: tuple[str, str]
) -> None:
    model = dataclasses.replace(small_model, num_key_value_heads=key_value_heads)
    theirs = hugging_face(model)
    ours = plain_decoder(model, Layout(attention_kernel=kernels[0], rmsnorm_kernel=kernels[1]))
    ours.load_state_dict(as_ours(theirs.state_dict(), model), strict=True)
    tokens = torch.randint(model.vocab_size, (3, model.sequence_length + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    with torch.no_grad():
        their_logits = theirs(inputs).logits
        our_logits = ours.logits(inputs).transpose(0, 1)
        loss = ours(inputs, targets)
    torch.testing.assert_close(our_logits, their_logits, atol=1e-5, rtol=1e-5)
    their_loss = torch.nn.functional.cross_entropy(their_logits.flatten(0, 1), targets.flatten())
    assert float(loss) == pytest.approx(float(their_loss), abs=1e-5)


def test_parameter_count_is_hugging_faces(small_model: Model) -> None:
    assert small_model.parameters == sum(p.numel() for p in hugging_face(small_model).parameters())


def test_a_hugging_face_config_is_read_as_it_is(small_model: Model) -> None:
    config = hugging_face(small_model).config.to_dict()
    written = {key: value for key, value in config.items() if value is not None}
    for key in set(written) - set(LlamaConfig().to_diff_dict()) - set(_shape(small_model)):
        if key not in ("torch_dtype", "dtype", "head_dim", "hidden_act", "rms_norm_eps"):
            written.pop(key)
    written.pop("initializer_range", None)
    read = model_from_mapping({**written, "sequence_length": 16, "global_batch_size": 8})
    assert dataclasses.replace(read, precision=None, head_dim=None) == small_model


def _shape(model: Model) -> dict[str, object]:
    return dataclasses.asdict(model)
