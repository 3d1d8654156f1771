"""A training that is interrupted and resumed is the one that was not."""

from pathlib import Path
from typing import Any

import pytest

from tests.trainables.small_models import CONFIGS
from tests.trainables.training.launching import MODEL, rewound, trained

STEPS = 50
TOLERANCE = 1e-5
SIZES = {"sequence_length": 16, "global_batch_size": 8}
TIED = {**CONFIGS["qwen2"], **SIZES}
EXPERTS = {**CONFIGS["mixtral"], **SIZES}
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tp2 pp2": ({"tensor_parallel": 2, "pipeline_parallel": 2}, MODEL),
    "tp2 sp dp2 zero1": (
        {"tensor_parallel": 2, "sequence_parallel": True, "data_parallel": 2},
        MODEL,
    ),
    "dp2 zero0": ({"data_parallel": 2, "zero_stage": 0}, MODEL),
    "dp2 zero2": ({"data_parallel": 2, "zero_stage": 2, "micro_batch_size": 2}, MODEL),
    "dp2 zero3": ({"data_parallel": 2, "zero_stage": 3}, MODEL),
    "tp2 dp2 zero3": ({"tensor_parallel": 2, "data_parallel": 2, "zero_stage": 3}, MODEL),
    "pp2 dp2 zero1": ({"pipeline_parallel": 2, "data_parallel": 2}, MODEL),
    "pp2 zero0": ({"pipeline_parallel": 2, "data_parallel": 2, "zero_stage": 0}, MODEL),
    "tied, tp2 pp2": ({"tensor_parallel": 2, "pipeline_parallel": 2}, TIED),
    "experts, pp2 tp2": ({"pipeline_parallel": 2, "tensor_parallel": 2}, EXPERTS),
    "bf16, pp2 dp2": (
        {"pipeline_parallel": 2, "data_parallel": 2},
        {**MODEL, "precision": "bf16"},
    ),
    "bf16, dp2 zero3": (
        {"data_parallel": 2, "zero_stage": 3},
        {**MODEL, "precision": "bf16"},
    ),
}


def check_resumed(name: str, folder: Path) -> None:
    """Losses, norms and validation losses of the second half are those without a restart."""
    layout, model = LAYOUTS[name]
    validation = ("--validation-data", __file__, "--validate-every", "10")
    options = ("--steps", STEPS, *validation, "--warmup-steps", "5", "--learning-rate", "1e-3")
    whole = trained(
        layout, *options, "--checkpoints", folder / "whole", "--save-every", "25", model=model
    )
    assert whole.status == 0, whole.errors
    middle = rewound(folder / "whole", STEPS // 2, folder / "middle")
    again = trained(layout, *options, "--resume-from", middle, model=model)
    assert again.status == 0, again.errors
    assert [step["step"] for step in again.steps] == list(range(STEPS // 2, STEPS))
    for figure in ("loss", "grad_norm", "learning_rate", "tokens", "validation_loss"):
        expected = [step[figure] for step in whole.steps[STEPS // 2 :] if figure in step]
        found = [step[figure] for step in again.steps if figure in step]
        assert found == pytest.approx(expected, abs=TOLERANCE), figure
    assert whole.losses[-1] < whole.losses[0] - 0.5


@pytest.mark.timeout(600)
@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_resumed_training_is_the_same_in_every_layout(name: str, tmp_path: Path) -> None:
    check_resumed(name, tmp_path)
