"""The host process's imports must not initialise CUDA: forked ranks could not use it then."""

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from autotune.trial.deepspeed_config import worker_environment
from trainables.deepspeed_llm import preload

# Each of these functions initialises the CUDA runtime, unless NVML answers instead. A CPU build of
# torch has no CUDA to initialise, so the test counts the calls.
WATCH = """
import sys, torch
calls = []
def watched(name):
    real = getattr(torch.cuda, name)
    def call(*args, **kwargs):
        calls.append(name)
        return real(*args, **kwargs)
    setattr(torch.cuda, name, call)
for name in ("_lazy_init", "current_device", "get_device_properties", "get_device_capability",
             "synchronize", "mem_get_info", "set_device"):
    watched(name)
from trainables.deepspeed_llm.preload import cuda_is_untouched, import_what_ranks_need
import_what_ranks_need()
assert "deepspeed.runtime.zero.stage3" in sys.modules, "the import is the real one"
assert cuda_is_untouched()
print(*sorted(set(calls)))
"""


def test_the_imports_before_the_fork_call_nothing_that_initialises_cuda() -> None:
    environment = {**os.environ, **worker_environment("gpu")}
    assert environment["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1", "is_available() asks NVML"
    watched = subprocess.run(
        [sys.executable, "-c", WATCH], capture_output=True, text=True, env=environment
    )
    assert watched.returncode == 0, watched.stderr
    assert watched.stdout.split() == []


@pytest.mark.parametrize(("status", "untouched"), [(3, True), (0, False), (100, False)])
def test_the_driver_itself_says_whether_it_was_initialised(
    monkeypatch: pytest.MonkeyPatch, status: int, untouched: bool
) -> None:
    driver = SimpleNamespace(cuDeviceGetCount=lambda count: status)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert preload.cuda_is_untouched() is untouched


def test_without_a_driver_there_is_nothing_to_touch(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert preload.cuda_is_untouched()
