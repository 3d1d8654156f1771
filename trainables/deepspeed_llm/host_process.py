"""The host process of a node: imports torch and DeepSpeed once and forks the ranks of each trial.

`host.LocalHost` runs it as `python -m trainables.deepspeed_llm.host_process EVENTS_FD`. Commands
come as JSON lines on standard input. Events go as JSON lines into the pipe EVENTS_FD, which the
ranks write too; each line is shorter than PIPE_BUF, so writes are atomic and lines never mix. It
never initialises CUDA: a forked process could not use it.

No rank is left behind. When standard input ends, this process kills its ranks and exits. When this
process is killed, the kernel kills its ranks (PR_SET_PDEATHSIG). Processes that ranks start are
killed after the trial, whatever their process group (PR_SET_CHILD_SUBREAPER). Output of ranks goes
through pipes, so excessive output or a full disk cannot make the training fail.
"""

import contextlib
import ctypes
import dataclasses
import faulthandler
import gc
import importlib
import json
import os
import resource
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainables.deepspeed_llm.preload import cuda_is_untouched, import_what_ranks_need
from trainables.deepspeed_llm.rank_log import RankLog

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_THREAD_STACK_BYTES = 2**20
_MAIN_STACK_BYTES = 8 * 2**20
_LONGEST_EVENT = 4000  # PIPE_BUF is 4096 on Linux


@dataclasses.dataclass(slots=True)
class _Rank:
    number: int
    pidfd: int
    log: RankLog


class HostProcess:
    """Reads commands, forks ranks and reports when they exit."""

    rank_program = "trainables.deepspeed_llm.rank_process"
    """Module whose `main` a forked rank runs."""

    def __init__(self, events_fd: int) -> None:
        self._events_fd = events_fd
        self._selector = selectors.DefaultSelector()
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
        self._pending = b""
        self._rendezvous: socket.socket | None = None
        self._job_id: str | None = None
        self._ranks: dict[int, _Rank] = {}  # by process id

    def serve(self) -> None:
        """Serve commands until standard input ends, then kill all ranks."""
        self._emit({"event": "ready"})
        try:
            while True:
                for key, _ in self._selector.select():
                    if self._selector.get_map().get(key.fd) is not key:
                        continue  # an earlier event of this iteration has closed it
                    if isinstance(key.data, RankLog):
                        if not key.data.copy():  # end of file: the rank has exited
                            self._selector.unregister(key.fd)
                    elif key.data is not None:
                        self._reap(key.data)
                    elif not self._read_commands():
                        return
        finally:
            self._kill_ranks()

    def _read_commands(self) -> bool:
        chunk = os.read(sys.stdin.fileno(), 65536)
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        for line in lines:
            command = json.loads(line)
            handler: Callable[[dict[str, Any]], None] = {
                "listen": self._listen,
                "start": self._start,
                "stop": self._stop,
            }[command.pop("command")]
            handler(command)
        return bool(chunk)

    def _listen(self, command: dict[str, Any]) -> None:
        """Bind the rendezvous socket. Rank 0 inherits it, so no other process can take the port."""
        self._close_rendezvous()
        family = socket.AF_INET6 if ":" in command["address"] else socket.AF_INET
        self._rendezvous = socket.create_server((command["address"], 0), family=family)
        self._emit({"event": "listening", "port": self._rendezvous.getsockname()[1]})

    def _start(self, job: dict[str, Any]) -> None:
        self._kill_ranks()
        self._job_id = job["job_id"]
        for local_rank, rank in enumerate(job["ranks"]):
            owner = os.getpid()
            log = RankLog(job["spec"]["log_dir"], rank)
            pid = os.fork()
            if pid == 0:
                self._become_rank(job, rank, local_rank, owner, log.write_fd)
            log.close_write_end()
            pidfd = os.pidfd_open(pid)
            self._ranks[pid] = _Rank(rank, pidfd, log)
            self._selector.register(pidfd, selectors.EVENT_READ, pid)
            self._selector.register(log.read_fd, selectors.EVENT_READ, log)
        self._close_rendezvous()

    def _stop(self, command: Mapping[str, Any]) -> None:
        self._kill_ranks()
        self._emit({"event": "stopped"})

    def _reap(self, pid: int) -> None:
        if pid not in self._ranks:
            return
        rank = self._ranks.pop(pid)
        self._selector.unregister(rank.pidfd)
        os.close(rank.pidfd)
        _kill_group(pid)  # also kills child processes of the rank
        _, status = os.waitpid(pid, 0)
        if rank.log.read_fd in self._selector.get_map():
            self._selector.unregister(rank.log.read_fd)
        rank.log.close()
        code = os.waitstatus_to_exitcode(status)
        self._emit(
            {"event": "exited", "job_id": self._job_id, "rank": rank.number, "exit_code": code}
        )

    def _kill_ranks(self) -> None:
        for pid in list(self._ranks):
            _kill_group(pid)
        for pid in list(self._ranks):
            self._reap(pid)
        kill_children()

    def _become_rank(
        self, job: dict[str, Any], rank: int, local_rank: int, owner: int, log_fd: int
    ) -> None:
        """In the forked child: run the rank, and never return."""
        status = 1
        try:
            os.setpgid(0, 0)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != owner:
                os._exit(1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _redirect(log_fd)
            rendezvous = None
            if self._rendezvous is not None and rank == 0:
                rendezvous = self._rendezvous.detach()
            self._close_rendezvous()  # an open copy would keep peers waiting after rank 0 exits
            entry = importlib.import_module(self.rank_program)
            status = entry.main(
                job,
                rank,
                local_rank,
                rendezvous,
                lambda event: self._emit({**event, "job_id": job["job_id"], "rank": rank}),
            )
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _close_rendezvous(self) -> None:
        if self._rendezvous is not None:
            self._rendezvous.close()
            self._rendezvous = None

    def _emit(self, event: Mapping[str, Any]) -> None:
        line = json.dumps(event, ensure_ascii=False).encode(errors="replace") + b"\n"
        assert len(line) <= _LONGEST_EVENT, "longer events would not be written atomically"
        os.write(self._events_fd, line)


def _redirect(log_fd: int) -> None:
    dev_null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(dev_null, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)
    faulthandler.enable()  # logs the stack of a rank that dies by SIGSEGV and the like


def kill_children() -> None:
    """Kill all children, among them orphans of ranks in other process groups: as the subreaper,
    this process adopts them.

    Killing one may orphan its own children in turn, so repeat until none is left.
    """
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while orphans := children.read_text().split():
        for pid in map(int, orphans):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # it may not have called setpgid yet


def _shrink_thread_stacks() -> None:
    """Give threads 1 MB stacks. glibc reads the size at program start, hence the exec.

    A stack counts towards the memory limit whether used or not, and the process groups of a
    pipeline start a dozen threads: at the default of 8 MB they would need more memory than the
    activations of a small model.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft != _THREAD_STACK_BYTES:
        resource.setrlimit(resource.RLIMIT_STACK, (_THREAD_STACK_BYTES, hard))
        os.execv(sys.executable, sys.orig_argv)
    main_stack = _MAIN_STACK_BYTES if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_STACK, (min(_MAIN_STACK_BYTES, main_stack), hard))


def become_reaper() -> int:
    """Adopt orphans and leave Ctrl-C to the owner; returns the descriptor of the events' pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    events_fd = int(sys.argv[1])
    os.set_inheritable(events_fd, False)
    return events_fd


def main() -> None:
    """Import everything that ranks need, then serve."""
    if os.environ["DS_ACCELERATOR"] == "cpu":
        _shrink_thread_stacks()
    events_fd = become_reaper()
    import_what_ranks_need()
    if not cuda_is_untouched():
        sys.exit("an import has initialised CUDA: forked ranks could not use it")
    gc.collect()
    gc.freeze()  # avoids copy-on-write of the parent's pages by garbage collection in ranks
    HostProcess(events_fd).serve()


if __name__ == "__main__":
    main()
