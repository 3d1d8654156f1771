"""All uses of Ray's private API, in one module, to be checked when Ray is upgraded."""

import contextlib
import importlib
import threading
import types
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import ray
from ray._private import ray_constants
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.cluster_utils import Cluster as RayNodes
from ray.core.generated import gcs_service_pb2
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.tune.execution.tune_controller import TuneController
from ray.tune.trainable.metadata import _TrainingRunMetadata

__all__ = [
    "RayNodes",
    "available_resources_by_node",
    "connected_head",
    "forget_trial",
    "head_address",
    "head_answers",
    "listening_on_loopback",
    "tune_without_state",
]


def available_resources_by_node() -> Mapping[str, Mapping[str, float]]:
    """Free resources of each node that is alive, by node id."""
    resources: Mapping[str, Mapping[str, float]] = ray._private.state.available_resources_per_node()
    return resources


def head_address(address: str) -> str:
    """HOST:PORT of the head that an address such as `auto` refers to. Raises ConnectionError where
    no cluster is found, and ValueError for an invalid address."""
    try:
        resolved: str = canonicalize_bootstrap_address_or_die(address)
    except ConnectionError as error:
        # Only the first sentence: Ray's advice follows.
        raise ConnectionError(str(error).partition(". ")[0]) from None
    return resolved


def connected_head() -> str:
    """HOST:PORT of the head of the connected cluster."""
    address: str = ray.get_runtime_context().gcs_address
    return address


def head_answers(address: str, timeout_seconds: float) -> bool:
    """True where the head at HOST:PORT answers in time; False where it refuses the token.

    Raises ConnectionError where no head of Ray listens, TimeoutError where it does not answer.
    """
    messages: Any = gcs_service_pb2  # generated: its types are not known
    try:
        with contextlib.closing(init_grpc_channel(address)) as channel:
            NodeInfoGcsServiceStub(channel).GetClusterId(
                messages.GetClusterIdRequest(), timeout=timeout_seconds
            )
    except ray.exceptions.AuthenticationError:
        return False  # no token was found here
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            return False
        sentence = "it does not answer as the head of a Ray cluster"
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise TimeoutError(sentence) from None
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            raise ConnectionError(sentence) from None
    return True


@contextlib.contextmanager
def listening_on_loopback() -> Iterator[None]:
    """Make Ray listen on 127.0.0.1 only, as it does by default on macOS and Windows.

    On Linux it listens on all interfaces by default, and anyone who can connect can run code.
    """
    with _replaced(ray_constants, "ENABLE_RAY_CLUSTER", False):
        yield


@contextlib.contextmanager
def tune_without_state() -> Iterator[None]:
    """Tune takes no snapshots, analyses no results and handles no signals inside.

    Nobody reads the snapshots, and on a full disk they print tracebacks; Tune's handler of SIGUSR1
    would end a search as if it was over.
    """
    # Not `from ray.tune import tune`: that name may be a function.
    run = importlib.import_module("ray.tune.tune")
    no_analysis = types.SimpleNamespace(trials=[])
    with (
        _replaced(TuneController, "checkpoint", lambda *_, **__: None),
        _replaced(run, "_setup_signal_catching", threading.Event),
        _replaced(run, "ExperimentAnalysis", lambda **_: no_analysis),
    ):
        yield


def forget_trial(trial: Any) -> None:
    """Drop the layouts, results and statistics that Tune keeps of an ended trial, and nobody reads.

    Tune keeps all trials until the end of a search, with 137 KiB each.
    """
    trial.config = trial.evaluated_params = {}
    trial._Trial__unresolved_config = {}
    trial.experiment_tag = ""
    trial.run_metadata = _TrainingRunMetadata()


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
