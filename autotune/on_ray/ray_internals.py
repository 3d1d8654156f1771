"""All uses of Ray's private API, in one module, to be checked when Ray is upgraded."""

import contextlib
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

__all__ = [
    "RayNodes",
    "available_resources_by_node",
    "head_address",
    "head_answers",
    "listening_on_loopback",
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


def head_answers(address: str, timeout_seconds: float) -> bool:
    """True where the head at HOST:PORT answers in time; False where it refuses the token.

    Raises ConnectionError where it does not answer.
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
        if error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
            raise ConnectionError("it does not answer as the head of a Ray cluster") from None
    return True


@contextlib.contextmanager
def listening_on_loopback() -> Iterator[None]:
    """Make Ray listen on 127.0.0.1 only, as it does by default on macOS and Windows.

    On Linux it listens on all interfaces by default, and anyone who can connect can run code.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
