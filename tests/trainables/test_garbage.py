"""Python's garbage is collected between steps, tensors in cycles too, and in no step."""

import gc
from collections.abc import Iterator

import pytest
import torch

from autotune.layout import layout_from_mapping
from autotune.model import Model
from tests.trainables.reference import plain_decoder
from trainables.deepspeed_llm.garbage import collected_between_steps


@pytest.fixture
def thawed() -> Iterator[None]:
    yield
    gc.enable()
    gc.unfreeze()


class Cycle:
    """Keeps a tensor until the collector finds it."""

    alive = 0

    def __init__(self) -> None:
        self.itself, self.memory = self, torch.zeros(1000)
        Cycle.alive += 1

    def __del__(self) -> None:
        Cycle.alive -= 1


@pytest.mark.usefixtures("thawed")
def test_cycles_live_as_long_as_their_step() -> None:
    old = Cycle()
    with collected_between_steps() as collect:
        for _ in range(3):
            for _ in range(2000):  # the collector would begin after 700 allocations
                Cycle()
            assert Cycle.alive == 1 + 2000
            collect()
            assert Cycle.alive == 1
    assert gc.isenabled() and old.itself is old


@pytest.mark.usefixtures("thawed")
def test_it_is_on_again_after_a_failure() -> None:
    with pytest.raises(RuntimeError), collected_between_steps():
        assert not gc.isenabled()
        raise RuntimeError
    assert gc.isenabled()


@pytest.mark.usefixtures("thawed")
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_a_step_leaves_no_tensors_in_cycles(checkpointing: str, small_model: Model) -> None:
    """They would be kept until its end: the peak memory would rise without the collector."""
    layout = layout_from_mapping({"activation_checkpointing": checkpointing}, small_model)
    network = plain_decoder(small_model, layout)
    tokens = torch.zeros(2, small_model.sequence_length, dtype=torch.long)
    network(tokens, tokens).backward()  # imports modules of torch, which does leave frames behind
    with collected_between_steps():
        network(tokens, tokens).backward()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            gc.collect()
            assert not [found for found in gc.garbage if isinstance(found, torch.Tensor)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
