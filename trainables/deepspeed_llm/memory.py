"""How much memory a rank used, and a limit that the operating system enforces."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

GIB = 2**30


class PeakMemory(Protocol):
    """Most memory of this process since the meter was made, in GiB."""

    def in_use(self) -> float:
        """Memory that held something."""

    def reserved(self) -> float:
        """Memory that was set aside, used or not: what a limit counts."""


class CpuPeakMemory:
    """Resident anonymous pages (from VmHWM, set back at the start) and private virtual memory.

    Pages of libraries come in as they are first touched and are no memory of the layout: what of
    them is resident is taken off. Both figures are growth since the start.
    """

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        status = _status_kib()
        self._anonymous, self._virtual = status["RssAnon"], status["VmSize"]

    def in_use(self) -> float:
        status = _status_kib()
        return (status["VmHWM"] - status["RssFile"] - self._anonymous) * 1024 / GIB

    def reserved(self) -> float:
        # VmPeak has no counterpart for private memory alone; nothing else is mapped meanwhile.
        return (_status_kib()["VmPeak"] - self._virtual) * 1024 / GIB


class CudaPeakMemory:
    """The peaks of torch's caching allocator on the current device, and what else is in use there:
    the CUDA context, libraries and communicators. The device must be this process's alone."""

    def __init__(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def in_use(self) -> float:
        return (torch.cuda.max_memory_allocated() + _besides_torch()) / GIB

    def reserved(self) -> float:
        return (torch.cuda.max_memory_reserved() + _besides_torch()) / GIB


def _besides_torch() -> int:
    """Bytes in use on the current device that torch's allocator knows nothing of."""
    free, total = torch.cuda.mem_get_info()
    return max(0, total - free - torch.cuda.memory_reserved())


@contextlib.contextmanager
def memory_limit(budget_gib: float | None, device: torch.device) -> Iterator[None]:
    """Let this process allocate at most `budget_gib` more than it holds now; None: no limit.

    On CPUs the kernel enforces it (RLIMIT_DATA), on GPUs torch's allocator does. An allocation
    beyond it fails where it happens. The limit is lifted on the way out, also by an exception, so
    that the failure can be reported.
    """
    if budget_gib is None:
        yield
    elif device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        tensors = max(0.0, budget_gib * GIB - _besides_torch())  # the context counts, too
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
