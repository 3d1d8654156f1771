"""A trainable for the fault suite: injects failures of real ranks and losses of nodes."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import ray

from autotune.trial.trainable import RankHost
from autotune.trial.trial import Ended, StepReport, TrialSpec
from trainables.deepspeed_llm.host import LocalHost
from trainables.deepspeed_llm.launch import DeepSpeedLlm
from trainables.fake import fake_step_seconds

# Faults outside the ranks, injected in the first attempt only.
ACTOR_FAULTS = (
    "trainable's actor is killed",
    "node's actor is killed",
    "host process is killed",
)


class FaultyDeepSpeedLlm(DeepSpeedLlm):
    """Trains for real, except for the trials of `faults`. A `Trainable`.

    The steps' times are replaced by those of the fake, so that which layout wins does not depend on
    the noise of the machine.
    """

    def __init__(self, faults: Mapping[str, str], notes: Path) -> None:
        """`faults` by trial_id; `notes` is a folder for the times of faults."""
        super().__init__(device_kind="cpu")
        self._faults, self._notes = dict(faults), notes
        notes.mkdir(exist_ok=True)

    @property
    def host_factory(self) -> Callable[..., RankHost] | None:
        env = {"FAULTS": json.dumps(self._faults), "FAULT_TIME": str(self._notes / "fault")}
        return functools.partial(
            LocalHost, device_kind="cpu", env=env, program="tests.faults.faulty_host"
        )

    def run(
        self, spec: TrialSpec, hosts: Sequence[RankHost]
    ) -> Generator[StepReport | Ended, None, None]:
        with contextlib.closing(super().run(spec, hosts)) as events:
            for event in events:
                if isinstance(event, Ended):
                    self._note_the_delay(spec.trial_id)
                    yield event
                    continue
                seconds = fake_step_seconds(spec.layout)
                ranks = (dataclasses.replace(r, step_seconds=seconds) for r in event.ranks)
                yield dataclasses.replace(event, ranks=tuple(ranks))
                if event.step == 0:
                    self._strike(spec, hosts)

    def _strike(self, spec: TrialSpec, hosts: Sequence[Any]) -> None:
        fault = self._faults.get(spec.trial_id)
        struck = self._notes / f"struck-{spec.trial_id}"
        if fault not in ACTOR_FAULTS or struck.exists():
            return
        struck.touch()
        if fault.startswith("trainable"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.startswith("node"):
            ray.kill(hosts[1]._actor)
        else:
            for process in psutil.process_iter(["cmdline"]):
                if "tests.faults.faulty_host" in (process.info["cmdline"] or ()):
                    process.kill()
                    return

    def _note_the_delay(self, trial_id: str) -> None:
        """Write down the time since the fault that ended the trial."""
        fault = self._notes / "fault"
        if fault.exists():
            delay = time.time() - float(fault.read_text())
            (self._notes / f"delay-{trial_id}").write_text(f"{delay:.2f}")
            fault.unlink()


def delays(notes: Path) -> Iterator[tuple[str, float]]:
    """Seconds from the fault to the end of the trial, by trial_id."""
    for file in notes.glob("delay-*"):
        yield file.name.removeprefix("delay-"), float(file.read_text())
