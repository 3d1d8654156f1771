"""Runs one task on all hosts of a placement group and merges the events of its ranks."""

import contextlib
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from autotune.trial.trainable import RankHost
from autotune.trial.trial import TrialSpec, to_json
from trainables.deepspeed_llm.host import new_job_id

_POLL_SECONDS = 1.0


class Job:
    """One task on all hosts. Leaving the context kills its ranks."""

    def __init__(
        self,
        task: str,
        spec: TrialSpec,
        hosts: Sequence[RankHost],
        *,
        processes: int | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """`processes`: their number over all hosts; None: one for each rank of the layout.
        `details`: what they are told beside the trial."""
        self._task, self._spec, self._hosts = task, spec, hosts
        self._details = dict(details or {})
        self.world_size = processes or spec.layout.world_size
        self._per_node = -(-self.world_size // len(hosts))
        self._events: queue.Queue[Mapping[str, Any] | BaseException] = queue.Queue()
        self._leaving = threading.Event()
        self._pumps = [
            threading.Thread(target=self._pump, args=(host,), daemon=True) for host in hosts
        ]

    def __enter__(self) -> "Job":
        try:
            self._start()
        except BaseException:
            self._stop_ranks()
            raise
        for pump in self._pumps:
            pump.start()
        return self

    def _start(self) -> None:
        address, port = self._hosts[0].listen()
        job = {
            **self._details,
            "job_id": new_job_id(),
            "task": self._task,
            "spec": to_json(self._spec),
            "world_size": self.world_size,
            "master_address": address,
            "master_port": port,
        }
        ranks = range(self.world_size)
        with ThreadPoolExecutor(len(self._hosts)) as pool:
            starts = [
                pool.submit(host.start, {**job, "ranks": list(ranks[first:][: self._per_node])})
                for host, first in zip(
                    self._hosts, range(0, self.world_size, self._per_node), strict=True
                )
            ]
            for start in starts:
                start.result()

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._stop_ranks()
        for pump in self._pumps:
            pump.join()

    def _stop_ranks(self) -> None:
        with ThreadPoolExecutor(len(self._hosts)) as pool:
            stops = [pool.submit(host.stop) for host in self._hosts]
        for stop in stops:
            with contextlib.suppress(Exception):  # a lost node was reported already
                stop.result()

    def node_of(self, rank: int) -> str:
        """Name of a rank's node, for messages."""
        return f"node {rank // self._per_node}"

    def next_event(self, deadline: float | None) -> Mapping[str, Any] | None:
        """The next event, or None once the deadline (monotonic seconds) has passed."""
        try:
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            event = self._events.get(timeout=remaining)
        except queue.Empty:
            return None
        if isinstance(event, BaseException):
            raise event
        return event

    def events_during(self, seconds: float) -> list[Mapping[str, Any]]:
        """All events within that time."""
        deadline = time.monotonic() + seconds
        return list(iter(lambda: self.next_event(deadline), None))

    def _pump(self, host: RankHost) -> None:
        while not self._leaving.is_set():
            try:
                for event in host.events(_POLL_SECONDS):
                    self._events.put(event)
            except BaseException as error:  # raised by next_event
                self._events.put(error)
                return
