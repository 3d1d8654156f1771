"""Kernels of other packages: missing, broken, or there."""

import sys
from pathlib import Path

import pytest

from autotune.errors import InputError
from autotune.hardware import device_named
from autotune.hardware.kernels import MODULES, why_not_installed
from autotune.named_spaces import load_space
from autotune.on_ray.detected_cluster import fitted_to_nodes
from autotune.space import SearchSpace
from tests.autotune.simulate import fake_request

BROKEN = 'raise ImportError("flash_attn_2_cuda.so: undefined symbol: _ZN3c10")'
WHOLE = "def flash_attn_func(query, key, value, causal): ..."


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, **modules: str) -> None:
    (folder / "flash_attn").mkdir()
    for name, text in {"__init__": "", **modules}.items():
        (folder / "flash_attn" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_what_is_not_there_is_not_installed() -> None:
    assert "flash_attn" not in sys.modules
    assert {why_not_installed(kernel) for kernel in MODULES} == {"is not installed"}


def test_what_does_not_load_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, __init__=BROKEN)
    reason = why_not_installed("flash_attn")
    assert reason is not None and "undefined symbol" in reason and "\n" not in reason
    assert reason.startswith("cannot be imported (ImportError")


def test_each_version_stands_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, cute=WHOLE)
    assert why_not_installed("flash_attn_4") is None
    assert why_not_installed("flash_attn") is not None, "it has no flash_attn_func of its own"


def nodes(**missing: str) -> list[dict[str, object]]:
    whole = {"address": "10.0.0.1", "accelerator": "A100", "missing_kernels": {}}
    return [whole, {**whole, "address": "10.0.0.2", "missing_kernels": missing}]


def space(*kernels: str) -> SearchSpace:
    return load_space("llm13b").replaced({"attention_kernel": kernels}, what="attention_kernel")


def test_a_kernel_that_a_node_lacks_is_left_out_in_one_line() -> None:
    request = fake_request(space=space("sdpa_flash", "flash_attn"))
    fitted = fitted_to_nodes(request, nodes(flash_attn="cannot be imported (OSError: x)"))
    assert fitted.request.space.attention_kernel == ("sdpa_flash",)
    (sentence,) = fitted.changes
    assert sentence == "flash_attn cannot be imported (OSError: x) on node 10.0.0.2: left out"


def test_the_only_kernel_cannot_be_left_out() -> None:
    request = fake_request(space=space("flash_attn"))
    with pytest.raises(InputError, match=r"flash_attn is not installed on node 10\.0\.0\.2"):
        fitted_to_nodes(request, nodes(flash_attn="is not installed"))


def test_hopper_and_blackwell_have_the_fourth_version_and_others_do_not() -> None:
    for name, has in {"h100": True, "h200": True, "b200": True, "a100-80gb": False}.items():
        assert ("flash_attn_4" in device_named(name).attention_kernels) is has
