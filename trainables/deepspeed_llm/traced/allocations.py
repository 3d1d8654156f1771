"""Memory of tensors over time: when, in which phase and where each was allocated and freed."""

import collections
import sys
import weakref
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from autotune.trial.traced import LiveMemory
from trainables.deepspeed_llm.memory import GIB

# Smaller tensors are counted, but not by their place in the code.
_SMALLEST_WITH_PLACE = 2**20
# Code that allocates: what is above it in the stack is the machinery that called it.
_CODE = ("/trainables/deepspeed_llm/", "/deepspeed/", "/torch/optim/")
_OWN = "/trainables/deepspeed_llm/traced/"


class _Allocation(NamedTuple):
    size_bytes: int
    phase: str
    place: str


class _Change(NamedTuple):
    """One storage allocated (positive) or freed (negative)."""

    size_bytes: int
    allocation: _Allocation


class Allocations:
    """Counts the storages of tensors while they live. Rounding by an allocator is not counted."""

    def __init__(self) -> None:
        self.phase = "other"
        self.now_bytes = 0
        self._live: dict[int, _Allocation] = {}
        self._changes: list[_Change] = []
        self._peaks: dict[str, int] = collections.defaultdict(int)

    def enter(self, phase: str) -> str:
        """Begin a phase; returns the one before."""
        before, self.phase = self.phase, phase
        self._peaks[phase] = max(self._peaks[phase], self.now_bytes)
        return before

    def see(self, tensor: Tensor, operation: str) -> None:
        """Count the tensor's storage until it is freed, if it is a new one."""
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._live or not size:
            return
        place = _place(operation) if size >= _SMALLEST_WITH_PLACE else "small tensors"
        allocation = _Allocation(size, self.phase, place)
        self._live[key] = allocation
        weakref.finalize(storage, self._free, key).atexit = False
        self.now_bytes += size
        self._peaks[self.phase] = max(self._peaks[self.phase], self.now_bytes)
        self._changes.append(_Change(size, allocation))

    def begin_step(self) -> None:
        """Forget peaks and changes so far; what lives stays counted, as kept from before."""
        self._peaks.clear()
        self._changes = [_Change(live.size_bytes, live) for live in self._live.values()]

    def peaks_gib(self) -> dict[str, float]:
        """Peak of each phase since `begin_step`."""
        return {phase: peak / GIB for phase, peak in self._peaks.items()}

    def live_at_peak(self) -> list[LiveMemory]:
        """What lived at the peak since `begin_step`, by the phase and place of its allocation;
        largest first."""
        now = peak = at_peak = 0
        for index, change in enumerate(self._changes):
            now += change.size_bytes
            if now > peak:
                peak, at_peak = now, index
        live: dict[tuple[str, str], int] = collections.defaultdict(int)
        for change in self._changes[: at_peak + 1]:
            live[change.allocation.phase, change.allocation.place] += change.size_bytes
        largest = sorted(live.items(), key=lambda item: -item[1])
        return [
            LiveMemory(gib=size / GIB, phase=phase, place=place)
            for (phase, place), size in largest
            if size
        ]

    def _free(self, key: int) -> None:
        allocation = self._live.pop(key)
        self.now_bytes -= allocation.size_bytes
        self._changes.append(_Change(-allocation.size_bytes, allocation))


def _place(operation: str) -> str:
    """File, line and function that ran the operation; where only the autograd engine did, the
    operation."""
    for file, line, function in _frames():
        if any(code in file for code in _CODE) and _OWN not in file:
            node = torch._C._current_autograd_node()
            if node is not None and function == "backward" and "/trainables/" not in file:
                return f"{node.name()}: {operation}"
            short = file.rpartition("/site-packages/")[2]
            short = short[short.find("trainables/") :] if "trainables/" in short else short
            return f"{short}:{line} {function}"
    return operation


def _frames() -> Iterator[tuple[str, int, str]]:
    frame = sys._getframe(1)
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
        frame = frame.f_back  # type: ignore[assignment]
