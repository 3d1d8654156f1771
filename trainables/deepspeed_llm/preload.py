"""Imports the modules that ranks need, before the memory limit and the timing begin."""

import contextlib
import ctypes
import importlib

# Otherwise each rank would import these: several seconds, and counted as memory of the layout.
_MODULES = (
    "torch",
    "torch._dynamo",
    "deepspeed",
    "deepspeed.pipe",
    "deepspeed.comm.mori",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.stage_1_and_2",
    "torch._inductor.compile_fx",
    "setuptools",
    "distutils.ccompiler",
    "trainables.deepspeed_llm.rank",
    "trainables.deepspeed_llm.rank_process",
)


_NOT_INITIALISED = 3  # CUDA_ERROR_NOT_INITIALIZED


def cuda_is_untouched() -> bool:
    """Whether CUDA is not initialised in this process: otherwise forked ranks could not use it."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True  # there is no driver
    status: int = driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))
    return status == _NOT_INITIALISED


def import_what_ranks_need() -> None:
    """Import the modules; those that the installed versions do not have are skipped."""
    for module in _MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
