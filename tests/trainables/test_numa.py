"""Ranks on GPUs run on the CPUs beside them."""

import os
import types
from pathlib import Path

import pytest
import torch

from trainables.deepspeed_llm import numa
from trainables.deepspeed_llm.numa import bind_to_gpu, local_cpus

GPU = "0000:1b:00.0"


def sysfs(folder: Path, *, node: str, cpus: str) -> Path:
    device = folder / "bus" / "pci" / "devices" / GPU
    device.mkdir(parents=True)
    (device / "numa_node").write_text(f"{node}\n")
    (device / "local_cpulist").write_text(f"{cpus}\n")
    return folder


@pytest.mark.parametrize(
    ("node", "cpus", "expected"),
    [
        ("0", "0-3,8-9,12", {0, 1, 2, 3, 8, 9, 12}),
        ("1", "5", {5}),
        ("0", "", set()),
        ("-1", "0-7", set()),
        ("0", "all", set()),
    ],
)
def test_the_cpus_of_a_node_are_read(
    node: str, cpus: str, expected: set[int], tmp_path: Path
) -> None:
    assert local_cpus(sysfs(tmp_path, node=node, cpus=cpus), GPU) == expected


def test_a_device_that_the_machine_does_not_know_has_none(tmp_path: Path) -> None:
    assert local_cpus(tmp_path, GPU) == set()


@pytest.mark.parametrize(
    ("cpus", "allowed", "bound"),
    [("0-3", {2, 3, 4}, [{2, 3}]), ("0-3", {4, 5}, []), ("0-3", {1}, [{1}])],
)
def test_a_rank_is_bound_to_what_it_is_allowed(
    cpus: str,
    allowed: set[int],
    bound: list[set[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[set[int]] = []
    properties = types.SimpleNamespace(pci_domain_id=0, pci_bus_id=0x1B, pci_device_id=0)
    monkeypatch.setattr(numa, "_SYSFS", sysfs(tmp_path, node="0", cpus=cpus))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: allowed)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: found.append(set(cpus)))
    bind_to_gpu(torch.device("cuda", 0))
    assert found == bound
