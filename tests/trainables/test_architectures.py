"""Every architecture of the registry, compared with Hugging Face's implementation."""

import copy
import functools

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from autotune.models import architectures
from tests.trainables.reference import plain_decoder
from tests.trainables.small_models import CONFIGS, as_ours, small_model
from trainables.deepspeed_llm.description import check_model


@functools.cache
def hugging_face(name: str) -> PreTrainedModel:
    torch.manual_seed(3)
    # Large initial weights: small ones would hide a wrong rotation.
    config = AutoConfig.for_model(**copy.deepcopy(CONFIGS[name]), initializer_range=0.1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases, which begin as ones or zeros
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def test_every_architecture_is_compared_and_trained() -> None:
    compared = {small_model(name).architecture for name in CONFIGS}
    assert compared == set(architectures())
    for name in CONFIGS:
        check_model(small_model(name))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_loss_equal_hugging_faces(name: str) -> None:
    model, theirs = small_model(name), hugging_face(name)
    ours = plain_decoder(model)
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


@pytest.mark.parametrize("name", CONFIGS)
def test_parameter_count_is_hugging_faces(name: str) -> None:
    model = small_model(name)
    expected = sum(parameter.numel() for parameter in hugging_face(name).parameters())
    assert model.parameters == expected
    assert sum(p.numel() for p in plain_decoder(model).parameters()) == expected
