"""The process that owns a node's devices: it has torch and DeepSpeed imported, and forks ranks.

Run as `python -m trainables.deepspeed_llm.host_process EVENTS_FD` by `host.LocalHost`. It is small
and plain on purpose: its children are copies of it. Commands come as JSON lines on the standard
input; events go as JSON lines into the pipe EVENTS_FD, which the ranks write as well (a line is
shorter than PIPE_BUF, so lines never mix). CUDA is not touched here: a copy could not use it.

No rank outlives its owner: when the standard input ends, this process kills its ranks and leaves;
when this process is killed, the kernel kills its ranks (PR_SET_PDEATHSIG). What ranks start goes
with them, in whatever process group it is (PR_SET_CHILD_SUBREAPER). What ranks print comes through
pipes, so that neither a flood nor a full disk touches the training.
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
    """Reads commands, forks ranks, reports their ends."""

    def __init__(self, events_fd: int) -> None:
        self._events_fd = events_fd
        self._selector = selectors.DefaultSelector()
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
        self._pending = b""
        self._rendezvous: socket.socket | None = None
        self._job_id: str | None = None
        self._ranks: dict[int, _Rank] = {}  # by process id

    def serve(self) -> None:
        """Work until the standard input ends, then leave no rank behind."""
        self._emit({"event": "ready"})
        try:
            while True:
                for key, _ in self._selector.select():
                    if self._selector.get_map().get(key.fd) is not key:
                        continue  # what came before it in this turn has closed it
                    if isinstance(key.data, RankLog):
                        if not key.data.copy():  # the rank has closed it
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
        """Bind the rendezvous here and now: rank 0 inherits it, so its port cannot be taken."""
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
        _kill_group(pid)  # whatever the rank started goes with it
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
        _kill_orphans()

    def _become_rank(
        self, job: dict[str, Any], rank: int, local_rank: int, owner: int, log_fd: int
    ) -> None:
        """In the child: turn into a rank, and never return."""
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
            self._close_rendezvous()  # a copy would keep peers waiting after rank 0 has gone
            entry = importlib.import_module("trainables.deepspeed_llm.rank_process")
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
        assert len(line) <= _LONGEST_EVENT, "events are written in one piece"
        os.write(self._events_fd, line)


def _redirect(log_fd: int) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)
    faulthandler.enable()  # where a rank that the kernel kills was


def _kill_orphans() -> None:
    """Kill what ranks left behind in process groups of their own: it is this process's child now.

    Its own children may come only then, so this is done until there are none.
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
        os.kill(pid, signal.SIGKILL)  # before its setpgid


def _shrink_thread_stacks() -> None:
    """Give threads 1 MB stacks; glibc reads the size once, when a program starts.

    A stack counts as private memory whether used or not, and a pipeline's process groups start a
    dozen threads: at the usual 8 MB they would outweigh the activations of a small model.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft != _THREAD_STACK_BYTES:
        resource.setrlimit(resource.RLIMIT_STACK, (_THREAD_STACK_BYTES, hard))
        os.execv(sys.executable, sys.orig_argv)
    main_stack = _MAIN_STACK_BYTES if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_STACK, (min(_MAIN_STACK_BYTES, main_stack), hard))


def main() -> None:
    """Import everything that ranks need, then serve."""
    if os.environ["DS_ACCELERATOR"] == "cpu":
        _shrink_thread_stacks()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the owner's business
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    events_fd = int(sys.argv[1])
    os.set_inheritable(events_fd, False)
    import_what_ranks_need()
    if not cuda_is_untouched():
        sys.exit("an import has initialised CUDA, which forked ranks could not use then")
    gc.collect()
    gc.freeze()  # keeps the collector from copying the parent's pages in every rank
    HostProcess(events_fd).serve()


if __name__ == "__main__":
    main()
