"""The host process of a node for trials of a training command.

As that of the DeepSpeed worker, but it imports no torch, and the processes of a trial are told to
end (SIGTERM) before they are killed.
"""

import os
import select
import signal
import time
from typing import Any

from trainables.command.recipe import recipe_of
from trainables.deepspeed_llm.host_process import HostProcess, become_reaper

# What a supervisor needs beyond the command's own time to end.
_MARGIN_SECONDS = 3.0


class CommandHostProcess(HostProcess):
    """Forks a supervisor for each process of a trial."""

    rank_program = "trainables.command.supervisor"
    _stop_seconds = 0.0

    def _start(self, job: dict[str, Any]) -> None:
        super()._start(job)
        self._stop_seconds = recipe_of(job["recipe"]).stop_seconds

    def _kill_ranks(self) -> None:
        for pid in self._ranks:
            os.kill(pid, signal.SIGTERM)  # not reaped yet, so the number is still theirs
        deadline = time.monotonic() + self._stop_seconds + _MARGIN_SECONDS
        waiting = {rank.pidfd for rank in self._ranks.values()}
        while waiting and (left := deadline - time.monotonic()) > 0:
            ended, _, _ = select.select(waiting, [], [], left)
            waiting -= set(ended)
        super()._kill_ranks()


def main() -> None:
    """Serve commands until standard input ends."""
    CommandHostProcess(become_reaper()).serve()


if __name__ == "__main__":
    main()
