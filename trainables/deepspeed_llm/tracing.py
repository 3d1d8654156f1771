"""Records when a rank's passes begin and end. Nothing of this runs in steps that are not traced.

Functions of DeepSpeed's engine are replaced by ones that note the time before and after. A rank
waits for no other one because of it. On GPUs the notes are CUDA events in the stream of the passes,
which are read when the step is done; the host waits for the device once more per traced step,
before the step is timed, to tie the events to its clock.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from deepspeed.runtime.pipe import schedule

from autotune.trial.trace import Kind, RankTrace, Traced

# What DeepSpeed's pipeline engine executes, by its instruction.
_INSTRUCTIONS: Mapping[type, Kind] = {
    schedule.ForwardPass: "forward",
    schedule.BackwardPass: "backward",
    schedule.SendActivation: "send",
    schedule.SendGrad: "send",
    schedule.RecvActivation: "receive",
    schedule.RecvGrad: "receive",
    schedule.ReduceTiedGrads: "reduction",
    schedule.ReduceGrads: "reduction",
    schedule.OptimizerStep: "update",
}
# Methods of the plain engine. It reduces gradients at the end of its backward pass; with ZeRO 2 and
# 3, and on GPUs, most of that runs beside the pass.
_METHODS: Mapping[str, Kind] = {
    "forward": "forward",
    "backward": "backward",
    "allreduce_gradients": "reduction",
    "_take_model_step": "update",
}
_OF_MICRO_BATCHES = ("forward", "backward", "send", "receive")
_BARRIERS = 9
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class _Clock(Protocol):
    """Notes times."""

    def begin(self) -> None:
        """A step begins."""

    def note(self) -> Any:
        """This moment, of the host or of the device."""

    def seconds(self, noted: Any) -> float:
        """What was noted, as seconds of CLOCK_MONOTONIC, which all processes of a machine share.
        The device must have finished the step."""


class _HostClock:
    def begin(self) -> None:
        pass

    def note(self) -> float:
        return time.monotonic()

    def seconds(self, noted: float) -> float:
        return noted


class _DeviceClock:
    def __init__(self, device: torch.device) -> None:
        self._device = device

    def begin(self) -> None:
        torch.cuda.synchronize(self._device)
        self._origin, self._origin_seconds = self.note(), time.monotonic()

    def note(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, noted: torch.cuda.Event) -> float:
        return self._origin_seconds + self._origin.elapsed_time(noted) / 1e3


@dataclasses.dataclass(slots=True)
class _Noted:
    kind: Kind
    micro_batch: int | None
    start: Any
    end: Any = None


class Recorder:
    """Records the passes of an engine, step by step."""

    def __init__(self, device: torch.device) -> None:
        self._clock: _Clock = _DeviceClock(device) if device.type == "cuda" else _HostClock()
        self._traced: list[Traced] = []
        self._notes: list[_Noted] = []
        self._open: _Noted | None = None
        self._counts: dict[object, int] = {}

    def attach(self, engine: Any) -> None:
        """Record a DeepSpeed engine from now on."""
        if hasattr(engine, "_INSTRUCTION_MAP"):
            engine._INSTRUCTION_MAP = {
                instruction: self._recorded(_INSTRUCTIONS.get(instruction), execute)
                for instruction, execute in engine._INSTRUCTION_MAP.items()
            }
            return
        for name, kind in _METHODS.items():
            setattr(engine, name, self._recorded(kind, getattr(engine, name)))

    def begin(self) -> None:
        """A step begins."""
        self._notes.clear()
        self._counts.clear()
        self._clock.begin()

    def end(self, step: int) -> None:
        """The step has ended, also on the device."""
        self._traced += (
            Traced(
                step,
                noted.kind,
                noted.micro_batch,
                self._clock.seconds(noted.start),
                self._clock.seconds(noted.end),
            )
            for noted in self._notes
        )

    def trace(self, rank: int) -> RankTrace:
        """What was recorded, on the clock of rank 0's machine. A collective call."""
        offset = clock_offset_seconds()
        return RankTrace(
            rank=rank,
            clock_offset_seconds=offset,
            intervals=tuple(
                traced._replace(
                    start_seconds=traced.start_seconds + offset,
                    end_seconds=traced.end_seconds + offset,
                )
                for traced in self._traced
            ),
        )

    def _recorded(self, kind: Kind | None, function: Callable[..., Any]) -> Callable[..., Any]:
        if kind is None:
            return function

        def run(*arguments: Any, **named: Any) -> Any:
            noted = _Noted(kind, self._micro_batch(kind, function), self._clock.note())
            self._notes.append(noted)
            outer, self._open = self._open, noted
            if outer is not None:  # gradients are reduced within the backward pass, which ends here
                outer.end = noted.start
            try:
                return function(*arguments, **named)
            finally:
                if noted.end is None:
                    noted.end = self._clock.note()
                self._open = outer

        return run

    def _micro_batch(self, kind: Kind, function: object) -> int | None:
        """Number of the micro-batch: a function is called for one after the other."""
        if kind not in _OF_MICRO_BATCHES:
            return None
        number = self._counts.get(function, 0)
        self._counts[function] = number + 1
        return number


def clock_offset_seconds() -> float:
    """What to add to this machine's clock to get that of rank 0's machine. A collective call.

    Zero where all ranks are on one machine; else measured as the ranks leave barriers.
    """
    machines = _gathered(_BOOT_ID.read_text())
    if len(set(machines)) == 1:
        return 0.0
    left = []
    for _ in range(_BARRIERS):
        dist.barrier()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        left.append(time.monotonic())
    all_left = _gathered(left)
    own = machines[dist.get_rank()]
    first_here = all_left[machines.index(own)]
    pairs = zip(all_left[0], first_here, strict=True)
    return statistics.median(there - here for there, here in pairs)


def _gathered(value: Any) -> list[Any]:
    """The value of every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
