"""Measures and limits the memory of a rank."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

GIB = 2**30


class PeakMemory(Protocol):
    """Peak memory of this process since this object was created, in GiB."""

    def in_use(self) -> float:
        """Peak of the memory in use."""

    def reserved(self) -> float:
        """Peak of the memory allocated, used or not. A memory limit counts this."""


class CpuPeakMemory:
    """In use: resident anonymous pages (from VmHWM, reset on creation). Reserved: virtual memory.

    Resident pages of libraries are subtracted: they are loaded on first access and do not depend on
    the layout. Both figures are the growth since this object was created.
    """

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        status = _status_kib()
        self._anonymous, self._virtual = status["RssAnon"], status["VmSize"]

    def in_use(self) -> float:
        status = _status_kib()
        return (status["VmHWM"] - status["RssFile"] - self._anonymous) * 1024 / GIB

    def reserved(self) -> float:
        # There is no peak of private memory alone; no files are mapped during the training.
        return (_status_kib()["VmPeak"] - self._virtual) * 1024 / GIB


class CudaPeakMemory:
    """Peaks of torch's caching allocator on the current device, plus other memory in use there: the
    CUDA context, libraries, communicators. No other process may use the device."""

    def __init__(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def in_use(self) -> float:
        return (torch.cuda.max_memory_allocated() + non_torch_bytes()) / GIB

    def reserved(self) -> float:
        return (torch.cuda.max_memory_reserved() + non_torch_bytes()) / GIB


def non_torch_bytes() -> int:
    """Bytes in use on the current device outside torch's allocator."""
    free, total = torch.cuda.mem_get_info()
    return max(0, total - free - torch.cuda.memory_reserved())


@contextlib.contextmanager
def memory_limit(budget_gib: float | None, device: torch.device) -> Iterator[None]:
    """Let this process allocate at most `budget_gib` more than it holds now; None: no limit.

    On CPUs the kernel enforces it (RLIMIT_DATA), on GPUs torch's allocator does. An allocation
    beyond it raises. On CPUs the limit is lifted on exit, also after an exception, so that the
    failure can be reported.
    """
    if budget_gib is None:
        yield
    elif device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        # The CUDA context counts towards the limit, too.
        tensors = max(0.0, budget_gib * GIB - non_torch_bytes())
        torch.cuda.set_per_process_memory_fraction(min(1.0, tensors / total), device)
        yield
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = _status_kib()["VmData"] * 1024 + int(budget_gib * GIB)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _status_kib() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        name: int(value.split()[0])
        for name, value in (line.split(":", 1) for line in lines)
        if name.startswith(("Vm", "Rss"))
    }
