"""Import everything that a rank needs, before its memory is limited and its clock runs."""

import contextlib
import ctypes
import importlib

# What ranks would otherwise import one by one, several seconds each, or charged to their layout.
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
    """Whether CUDA has not been initialised in this process: only then can forked ranks use it."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True  # there is no driver
    status: int = driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))
    return status == _NOT_INITIALISED


def import_what_ranks_need() -> None:
    """Import it; what another version of a library does not have, its ranks do without."""
    for module in _MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
