"""A run directory that version 0.1.0 wrote, before constants had a kind and networks a file."""

import shutil
from pathlib import Path

import pytest

from autotune.hardware import device_named
from autotune.ledger.ledger import Ledger
from autotune.store.results import load
from autotune.store.run_directory import open_run
from tests.autotune.simulate import Silent

OLD = Path(__file__).with_name("run_of_0_1_0")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def test_it_is_read(old: Path) -> None:
    run = load(old)
    assert run.trials.num_rows == 8 and run.best is not None and run.best["trial_id"] == "0006"
    assert run.best_layout in run.request.space.layouts()
    kinds = {constant.kind for constant in run.request.space.cluster.device.constants.values()}
    assert kinds == {"stated", "fitted"}, "told by their sources"


def test_its_constants_have_the_names_of_today(old: Path) -> None:
    """Those of its network, under names that were retired, are those of the usual network now."""
    from autotune.cost.trainers import constants_for

    device = load(old).request.space.cluster.device
    today = constants_for(device_named("a100-80gb"), "deepspeed_llm")
    found = constants_for(device, "deepspeed_llm")
    assert found.keys() == today.keys()
    assert found["gemm_efficiency"] == 0.7815, "as stored"
    assert found["link_efficiency"] == today["link_efficiency"]


def test_it_goes_on(old: Path) -> None:
    assert Ledger(open_run(old), Silent()).is_over
    store = open_run(old)
    store.raise_limits(max_trials=6, gpu_hours=None)
    ledger = Ledger(store, Silent())
    spec = ledger.next_trial()
    assert spec is not None and spec.trial_id == "0009"
    assert spec.layout not in {record.layout for record in ledger.records}
