"""Addresses of Ray clusters that are refused by their form, before Ray is imported."""

import os

from autotune.errors import InputError

_RAY_ADDRESS = "RAY_ADDRESS"


def refuse_address_by_form(address: str) -> None:
    """Raise InputError for an address by which Ray would not join a running cluster as a node does.

    For `local` it would start one that listens on every interface. `ray://` and other protocols are
    for its client, which has no actors, nodes and placement groups of its own. `auto` stands for
    the variable RAY_ADDRESS where that is set.
    """
    from_variable = os.environ.get(_RAY_ADDRESS) if address == "auto" else None
    meant = from_variable or address
    got = f"{address!r}, which is {_RAY_ADDRESS}={meant!r}" if from_variable else repr(address)
    if meant == "local":
        raise InputError(
            f"must be that of a running Ray, got {got} (without an address the search starts a Ray "
            "of its own)",
            field="address",
        )
    if "://" in meant:
        raise InputError(
            "must be HOST:PORT of the cluster's GCS, such as HOST:6379, with the search on a node "
            f"of the cluster, got {got}",
            field="address",
        )
