"""Binds a rank to the CPUs beside its GPU: launching kernels from another socket takes longer."""

import os
from collections.abc import Set
from pathlib import Path
from typing import Any

import torch

_SYSFS = Path("/sys")


def bind_to_gpu(device: torch.device) -> None:
    """Let this thread, and those that it starts from now on, run on the CPUs of the NUMA node of
    a GPU; nothing changes where they are not known or not allowed to this process."""
    properties: Any = torch.cuda.get_device_properties(device)
    place = (properties.pci_domain_id, properties.pci_bus_id, properties.pci_device_id)
    cpus = local_cpus(_SYSFS, "{:04x}:{:02x}:{:02x}.0".format(*place)) & os.sched_getaffinity(0)
    if cpus:
        os.sched_setaffinity(0, cpus)


def local_cpus(sysfs: Path, pci_id: str) -> Set[int]:
    """The CPUs of the NUMA node of a PCI device such as 0000:1b:00.0; empty where the machine does
    not say, as most virtual ones."""
    device = sysfs / "bus" / "pci" / "devices" / pci_id
    try:
        if int((device / "numa_node").read_text()) < 0:
            return frozenset()
        listed = (device / "local_cpulist").read_text().strip()
        return frozenset(cpu for part in listed.split(",") if part for cpu in _range(part))
    except (OSError, ValueError):
        return frozenset()


def _range(part: str) -> range:
    """The CPUs of a part of a list, such as 0-3 or 7."""
    first, _, last = part.partition("-")
    return range(int(first), int(last or first) + 1)
