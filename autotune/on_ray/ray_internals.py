"""Everything that we use of Ray beside its public interface, in one place for an upgrade of Ray."""

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
    """What nobody holds now, by the id of each node that is alive."""
    resources: Mapping[str, Mapping[str, float]] = ray._private.state.available_resources_per_node()
    return resources


def head_address(address: str) -> str:
    """HOST:PORT of the head that an address means, such as `auto`. Raises ConnectionError where
    none is known, and ValueError for what is no address."""
    try:
        resolved: str = canonicalize_bootstrap_address_or_die(address)
    except ConnectionError as error:
        raise ConnectionError(str(error).partition(". ")[0]) from None  # then Ray's own advice
    return resolved


def head_answers(address: str, timeout_seconds: float) -> bool:
    """Whether the head at HOST:PORT answers in time; False: it wants another token.

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
    """Have Ray listen on 127.0.0.1 only, as it does by itself on macOS and Windows.

    On Linux it would listen on every network, and whoever reaches it may run code.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
