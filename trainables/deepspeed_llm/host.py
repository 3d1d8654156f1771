"""Client of the host process: start it, send commands, read events, and end it with its ranks."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from autotune.errors import NodeCheckFailed, NodeLost
from autotune.trial.deepspeed_config import worker_environment
from trainables.deepspeed_llm.network import network_environment

# Importing torch and DeepSpeed from a cold disk can take this long.
_PRELOAD_TIMEOUT_SECONDS = 300
_ANSWER_TIMEOUT_SECONDS = 60
_CLOSE_TIMEOUT_SECONDS = 10


class LocalHost:
    """Starts and stops ranks on this machine, through a host process. A `RankHost`."""

    def __init__(
        self,
        *,
        device_kind: Literal["gpu", "cpu"],
        address: str = "127.0.0.1",
        env: Mapping[str, str] | None = None,
        program: str = "trainables.deepspeed_llm.host_process",
    ) -> None:
        """Start the host process.

        `address`: this node's address, at which other nodes reach its ranks. `env`: variables that
        override this process's environment. `program`: the module to run as the host process.
        """
        self._address = address
        environment = {
            **worker_environment(device_kind),
            **network_environment(address),
            **os.environ,
            **(env or {}),
        }
        environment["PYTHONPATH"] = with_project_root(environment.get("PYTHONPATH"))
        read_fd, write_fd = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", program, str(write_fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[write_fd],
            env=environment,
        )
        os.close(write_fd)
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._job_id: str | None = None
        self._reader = threading.Thread(target=self._read, args=(read_fd,), daemon=True)
        self._reader.start()
        self._is_ready = False

    def listen(self) -> tuple[str, int]:
        """Open the rendezvous socket of the next job; returns its address and port."""
        answer = self._request({"command": "listen", "address": self._address}, "listening")
        return self._address, answer["port"]

    def start(self, job: Mapping[str, Any]) -> None:
        """Fork this node's ranks of the job."""
        self._job_id = job["job_id"]
        self._send({"command": "start", **job})

    def events(self, timeout_seconds: float) -> list[dict[str, Any]]:
        """Events of the current job's ranks; waits up to the timeout for the first."""
        events: list[dict[str, Any]] = []
        try:
            events.append(self._checked(self._events.get(timeout=timeout_seconds)))
            while True:
                events.append(self._checked(self._events.get_nowait()))
        except queue.Empty:
            if not events and self._process.poll() is not None:
                raise self._exit_error() from None  # a child of a rank may still hold the pipe open
            return [event for event in events if event.get("job_id") == self._job_id]

    def stop(self) -> None:
        """Kill the current ranks and return when they have exited."""
        self._request({"command": "stop"}, "stopped")
        self._job_id = None
        self._events.put({"event": "wake"})  # unblocks a thread that waits in events()

    def close(self) -> None:
        """End the host process and all of its ranks."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has exited already
            self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its ranks die with it
            self._process.wait()
        self._reader.join(_CLOSE_TIMEOUT_SECONDS)

    def __enter__(self) -> "LocalHost":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, read_fd: int) -> None:
        with os.fdopen(read_fd, "rb") as lines:
            for line in lines:
                event = json.loads(line)
                (self._events if "job_id" in event else self._answers).put(event)
        for events in (self._events, self._answers):
            events.put(None)

    def _request(self, command: Mapping[str, Any], answer_event: str) -> dict[str, Any]:
        if self._process.poll() is not None:
            raise self._exit_error()
        if not self._is_ready:
            self._await_answer("ready", _PRELOAD_TIMEOUT_SECONDS)
            self._is_ready = True
        self._send(command)
        return self._await_answer(answer_event, _ANSWER_TIMEOUT_SECONDS)

    def _send(self, command: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise self._exit_error() from None

    def _await_answer(self, event: str, timeout_seconds: float) -> dict[str, Any]:
        try:
            answer = self._checked(self._answers.get(timeout=timeout_seconds))
        except queue.Empty:
            self._process.kill()  # a late answer would be taken for the answer to the next command
            raise NodeLost(
                f"the host process did not answer within {timeout_seconds} s ({event})"
            ) from None
        assert answer["event"] == event, f"expected {event}, got {answer}"
        return answer

    def _checked(self, event: dict[str, Any] | None) -> dict[str, Any]:
        if event is None:
            raise self._exit_error()
        return event

    def _exit_error(self) -> NodeLost | NodeCheckFailed:
        status = self._process.wait()
        if not self._is_ready and status > 0:
            return NodeCheckFailed(
                f"the host process cannot start (exit status {status}): torch or DeepSpeed cannot "
                "be imported on this node, or a variable set by --env prevents it"
            )
        return NodeLost(f"the host process ended with status {status}")


def with_project_root(python_path: str | None) -> str:
    """PYTHONPATH with this project in front: on another node it may not be installed."""
    root = str(Path(__file__).resolve().parent.parent.parent)
    return root if not python_path else os.pathsep.join((root, python_path))


def new_job_id() -> str:
    """A unique name for a job."""
    return uuid.uuid4().hex
