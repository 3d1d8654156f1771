"""A host process that injects faults into its ranks; it replaces the real one.

The environment variable FAULTS maps trials to faults: {"0002": "exit"}. Everything else is the real
code: a fault happens inside a real rank, before its second step. Its time is written to a file, to
measure how long it takes until the fault is noticed.
"""

import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from autotune.trial.trial import TrialSpec
from trainables.deepspeed_llm import host_process, probe, rank, rank_process

FAULTY_RANK = 1
FAULTY_STEP = 1
# A command that is easy to find in the process list.
ORPHAN = ("sleep", "86399")


def main() -> None:
    """Patch the engine that the ranks will run, then run the real host process."""
    faults: dict[str, str] = json.loads(os.environ["FAULTS"])
    real_train, real_engine = rank_process.train, rank.build_engine
    current: list[str | None] = [None]

    def train(spec: TrialSpec, place: rank.Place, **callbacks: Any) -> None:
        fault = faults.get(spec.trial_id)
        current[0] = fault
        if fault == "slow device" and place.rank == FAULTY_RANK:
            real_seconds = probe.DeviceProbe.seconds
            probe.DeviceProbe.seconds = lambda self: 3 * real_seconds(self)  # type: ignore[method-assign]
        on_step = callbacks.pop("on_step")
        if fault == "wrong loss":
            callbacks["on_step"] = lambda s: on_step(dataclasses.replace(s, loss=s.loss / 2))
        else:
            callbacks["on_step"] = on_step
        real_train(spec, place, **callbacks)

    def build_engine(*arguments: Any, **options: Any) -> Any:
        engine = real_engine(*arguments, **options)
        fault = FAULTS.get(current[0] or "")
        faulty = fault is not None and dist.get_rank() == FAULTY_RANK
        return FaultyEngine(engine, fault) if fault is not None and faulty else engine

    rank_process.train = train
    rank.build_engine = build_engine
    host_process.main()


class FaultyEngine:
    """An engine that triggers the fault before one of its steps."""

    def __init__(self, engine: Any, fault: Callable[[Any], None]) -> None:
        self._engine, self._fault, self._steps = engine, fault, 0

    def step(self, batch: Any) -> Any:
        if self._steps == FAULTY_STEP:
            note_the_time()
            self._fault(self._engine)
        self._steps += 1
        return self._engine.step(batch)


def note_the_time() -> None:
    """Write the time of day, which another process on this machine compares with its own."""
    Path(os.environ["FAULT_TIME"]).write_text(repr(time.time()))


def _raise(engine: Any) -> None:
    raise ValueError("on purpose \N{COLLISION SYMBOL}\n" + "\N{COLLISION SYMBOL}[red]" * 1000)


def _segfault(engine: Any) -> None:
    ctypes.string_at(0)


def _hang_in_a_collective(engine: Any) -> None:
    dist.recv(torch.zeros(1), src=0)


def _hang_in_python(engine: Any) -> None:
    while True:
        pass


def _weights_become_nan(engine: Any) -> None:
    for parameter in engine._engine.module.parameters():
        parameter.data.fill_(float("nan"))


def _run_out_of_memory(engine: Any) -> None:
    hoard = [torch.ones(2**40)]
    hoard.clear()


def _eat_the_memory_of_the_node(engine: Any) -> None:
    hoard = []
    for _ in range(50):
        hoard.append(torch.ones(2**24))  # 64 MiB each
        time.sleep(0.05)
    time.sleep(60)


def _print_garbage(engine: Any) -> None:
    for descriptor in (1, 2):
        os.write(
            descriptor, b'{"event": "done", "rank": 1}\n\xff\xfe\x00\x1b[31m' + os.urandom(4096)
        )


def _flood(engine: Any) -> None:
    line = b"x" * 1023 + b"\n"
    for _ in range(64 * 1024):
        os.write(2, line)


def _flood_for_ever(engine: Any) -> None:
    while True:
        os.write(2, b"x" * 4096)


def _close_the_output(engine: Any) -> None:
    os.close(1)
    os.close(2)


def _leave_children(engine: Any) -> None:
    """One in the rank's process group, one in its own, one whose parent has exited."""
    subprocess.Popen(ORPHAN)
    subprocess.Popen(ORPHAN, start_new_session=True)
    subprocess.run(["sh", "-c", f"setsid {' '.join(ORPHAN)} & exit 0"], check=True)


FAULTS: dict[str, Callable[[Any], None]] = {
    "os._exit(3)": lambda engine: os._exit(3),
    "SIGKILL": lambda engine: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSEGV": _segfault,
    "raises": _raise,
    "hangs in a collective": _hang_in_a_collective,
    "hangs in Python": _hang_in_python,
    "stopped (SIGSTOP)": lambda engine: os.kill(os.getpid(), signal.SIGSTOP),
    "NaN loss": _weights_become_nan,
    "out of memory on one rank": _run_out_of_memory,
    "eats the node's memory": _eat_the_memory_of_the_node,
    "prints garbage": _print_garbage,
    "fills stderr (64 MiB)": _flood,
    "never stops printing": _flood_for_ever,
    "closes its output": _close_the_output,
    "leaves children": _leave_children,
}


def orphans() -> Iterator[int]:
    """Process ids of what `_leave_children` started."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")[:-1]
            except OSError:
                continue
            if command == [word.encode() for word in ORPHAN]:
                yield int(entry.name)


if __name__ == "__main__":
    sys.exit(main())
