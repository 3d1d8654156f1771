"""The actor that manages a node of a trial's placement group, and the host that calls it."""

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import ray

from autotune.errors import NodeCheckFailed, NodeLost, NodeOutOfMemory, first_line
from autotune.trial.trainable import RankHost

# During a long call: period of the heartbeat, and timeout of its answer. A disconnected node is
# detected within the sum of both. A busy node answers within a fraction of that.
_HEARTBEAT_SECONDS = 3.0
_PING_TIMEOUT_SECONDS = 7.0
# While a job runs, a node reports at least so often, if only that nothing has happened. The head
# takes reports one by one: where it takes none, the node waits with its third.
_REPORT_SECONDS = 1.0
_REPORTS_UNTIL_TAKEN = 2
_SILENT_SECONDS = _HEARTBEAT_SECONDS + _PING_TIMEOUT_SECONDS
# A node actor that hears nothing of the head for so long is disconnected: it ends its ranks.
_HEARTBEAT_TIMEOUT_SECONDS = 30.0


@ray.remote
class NodeActor:
    """Reserves the devices of one node and starts the ranks there.

    Ray ends the actor with its placement group, and its ranks end with it. If the network between
    node and head fails, Ray takes 15 minutes to notice, so the actor ends its ranks by itself when
    the head takes no more reports and sends no heartbeats.
    """

    def __init__(self, factory: Callable[..., RankHost], index: int) -> None:
        self._address = ray.util.get_node_ip_address()
        self._name = name_of_node(index, self._address)
        self._host = factory(address=self._address)
        self._has_ranks = False
        self._stopped = threading.Event()
        self._last_heartbeat = time.monotonic()
        threading.Thread(target=self._end_ranks_without_heartbeat, daemon=True).start()

    def place(self) -> dict[str, str]:
        return {"node_id": ray.get_runtime_context().get_node_id(), "address": self._address}

    def ping(self) -> None:
        self._last_heartbeat = time.monotonic()

    def listen(self) -> tuple[str, int]:
        return self._host.listen()

    def start(self, job: Mapping[str, Any]) -> None:
        self.ping()
        self._has_ranks = True
        self._host.start(job)

    def events(self) -> Generator[list[dict[str, Any]], None, None]:
        """What the ranks report, until the job is stopped."""
        stopped = self._stopped
        while not stopped.is_set():
            yield self._host.events(_REPORT_SECONDS)
            self.ping()  # the head has taken an earlier report

    def stop(self) -> None:
        self._stopped.set()
        self._stopped = threading.Event()
        self._host.stop()
        self._has_ranks = False

    def close(self) -> None:
        self._host.close()

    def _end_ranks_without_heartbeat(self) -> None:
        while (
            not self._has_ranks
            or time.monotonic() - self._last_heartbeat < _HEARTBEAT_TIMEOUT_SECONDS
        ):
            time.sleep(1.0)
        self._host.close()

    def __repr__(self) -> str:
        """Its name in Ray's dashboard."""
        return self._name


def name_of_node(index: int, address: str) -> str:
    return f"node {index} ({address})"


class RemoteHost:
    """Calls the host on another node. A `RankHost`; converts Ray's errors to NodeLost."""

    def __init__(self, actor: Any, name: str) -> None:
        self._actor = actor
        self._name = name
        self.title = name
        """What the next job is called in Ray's dashboard."""
        self.is_lost = False
        self._reports: ray.ObjectRefGenerator | None = None
        self._reported_at = 0.0

    def listen(self) -> tuple[str, int]:
        address, port = self._call("listen")
        return str(address), int(port)

    def start(self, job: Mapping[str, Any]) -> None:
        self._reports = None
        self._call("start", job)

    def events(self, timeout_seconds: float) -> list[dict[str, Any]]:
        """The next report of the node, which is one task for the whole job.

        A node that has not reported for `_SILENT_SECONDS` is lost.
        """
        with self._errors_converted():
            if self._reports is None:
                self._reports = self._actor.events.options(
                    name=self.title,
                    num_returns="streaming",
                    _generator_backpressure_num_objects=_REPORTS_UNTIL_TAKEN,
                ).remote()
                self._reported_at = time.monotonic()
            if not ray.wait([self._reports], timeout=timeout_seconds)[0]:
                if time.monotonic() - self._reported_at > _SILENT_SECONDS:
                    raise ray.exceptions.GetTimeoutError
                return []
            self._reported_at = time.monotonic()
            report = next(self._reports, None)
            events: list[dict[str, Any]] = [] if report is None else ray.get(report)
            return events

    def stop(self) -> None:
        self._call("stop")

    def close(self) -> None:
        self._call("close")

    def _call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the node actor, and wait as long as the node answers heartbeats.

        There is no timeout: the host enforces its own deadlines.
        """
        with self._errors_converted():
            answer = getattr(self._actor, method).remote(*arguments)
            while not ray.wait([answer], timeout=_HEARTBEAT_SECONDS)[0]:
                ray.get(self._actor.ping.remote(), timeout=_PING_TIMEOUT_SECONDS)
            return ray.get(answer)

    @contextlib.contextmanager
    def _errors_converted(self) -> Iterator[None]:
        """For one call. A lost node is not called again, because each call would wait for it."""
        if self.is_lost:
            raise NodeLost(f"{self._name} was lost before")
        try:
            yield
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, NodeCheckFailed):
                raise NodeCheckFailed(f"{self._name}: {error.cause}") from None
            raise NodeLost(f"{self._name}: {first_line(error.cause)}") from None
        except ray.exceptions.OutOfMemoryError as error:
            self.is_lost = True
            raise NodeOutOfMemory(f"{self._name}: {first_line(error)}") from None
        except ray.exceptions.RayError as error:
            self.is_lost = True
            raise NodeLost(f"{self._name}: {reason_of(error)}") from None


def reason_of(error: ray.exceptions.RayError) -> str:
    if isinstance(error, ray.exceptions.GetTimeoutError):
        return "it no longer answers"
    return first_line(error)
