"""Process groups: which are made, by how many calls, and that DeepSpeed gets its own ones."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import deepspeed
import pytest
import torch
import torch.distributed as dist
from deepspeed.comm import comm
from deepspeed.pipe import PipelineModule
from torch.testing._internal.distributed.fake_pg import FakeStore

from autotune.layout import Layout
from autotune.model import Model
from autotune.trial.deepspeed_config import deepspeed_config
from trainables.deepspeed_llm.build import Build
from trainables.deepspeed_llm.engine import Mesh, build_engine
from trainables.deepspeed_llm.groups import own_group
from trainables.deepspeed_llm.rank import Place, process_group

WIDE = Layout(tensor_parallel=2, pipeline_parallel=4, data_parallel=8)
LAYOUTS = (
    Layout(data_parallel=64),
    Layout(tensor_parallel=8, data_parallel=8, sequence_parallel=True),
    WIDE,
    dataclasses.replace(WIDE, pipeline_parallel=2, data_parallel=16),
)
# The groups of one kind are made by one call: replicas, stages, pipelines, tensor-parallel groups.
KINDS = 4

Join = Callable[[int, int], None]


@pytest.fixture
def join(monkeypatch: pytest.MonkeyPatch) -> Iterator[Join]:
    """Joins torch's fake process group as a rank of so many; DeepSpeed forgets it afterwards."""

    def join_as(rank: int, world_size: int) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
        comm.cdb = None
        monkeypatch.setenv("LOCAL_RANK", "0")
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
        deepspeed.init_distributed(dist_backend="fake", auto_mpi_discovery=False, verbose=False)

    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", False)
    yield join_as
    dist.destroy_process_group()
    comm.cdb = None


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """The groups of each call that makes some."""
    calls: list[list[list[int]]] = []

    def counted(groups: Sequence[Sequence[int]]) -> Any:
        calls.append([list(ranks) for ranks in groups])
        return own_group(groups)

    monkeypatch.setattr("trainables.deepspeed_llm.groups.own_group", counted)
    return calls


@pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.describe)
def test_all_ranks_make_the_same_groups_and_each_once(
    layout: Layout, join: Join, made: list[list[list[int]]]
) -> None:
    calls = []
    for rank in (0, 13, layout.world_size - 1):
        made.clear()
        join(rank, layout.world_size)
        mesh = Mesh(layout)
        calls.append([*made])
        grid = mesh.grid
        for group, ranks in (
            (grid.dp_proc_group, grid.dp_group),
            (grid.pp_proc_group, grid.pp_group),
            (grid.slice_proc_group, grid.slice_group),
        ):
            assert dist.get_process_group_ranks(group) == ranks and rank in ranks
        tensor = mesh.parallel
        assert (tensor.size, tensor.sequence_parallel) == (
            layout.tensor_parallel,
            layout.sequence_parallel,
        )
        if tensor.group is not None:
            assert dist.get_process_group_ranks(tensor.group)[tensor.rank] == rank
    assert calls[0] == calls[1] == calls[2] and len(calls[0]) <= KINDS
    groups = [tuple(ranks) for call in calls[0] for ranks in call]
    assert len(set(groups)) == len(groups)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # imports of DeepSpeed
@pytest.mark.parametrize("tied", [False, True])
def test_deepspeed_makes_no_group_of_its_own_but_that_of_all_ranks(
    tied: bool, join: Join, made: list[list[list[int]]], small_model: Model
) -> None:
    model = dataclasses.replace(small_model, tie_word_embeddings=tied)
    join(13, WIDE.world_size)
    mesh = Mesh(WIDE)
    build = Build(
        model=model,
        layout=WIDE,
        parallel=mesh.parallel,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    of_mesh = len(made)
    config = deepspeed_config(WIDE, model, precision="fp32", overlap_communication=False)
    engine: Any = build_engine(build, mesh, config)
    assert isinstance(engine._model, PipelineModule)
    assert engine._model._grid.slice_proc_group is mesh.parallel.group
    # The weights of first and last stage, in all pipelines at once.
    per_stage = WIDE.ranks_per_stage
    last = (WIDE.pipeline_parallel - 1) * per_stage
    ends = [[first, first + last] for first in range(per_stage)]
    everyone = list(range(WIDE.world_size))
    assert [call for call in made[of_mesh:] if call != ends] == [[everyone]]
    assert made[of_mesh:].count(ends) == tied


def test_nccl_splits_all_groups_of_a_kind_off_at_once(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the arguments can be seen without a GPU: `new_group` would be a call of all ranks each,
    and one of the members alone would never return."""
    join(13, WIDE.world_size)
    split: list[Any] = []
    assert dist.group.WORLD is not None
    dist.group.WORLD.bound_device_id = torch.device("cuda", 0)
    monkeypatch.setattr(dist, "new_group", lambda *_, **__: pytest.fail("not by one call each"))
    monkeypatch.setattr(dist, "split_group", lambda **named: split.append(named))
    own_group([range(0, 32), range(32, 64)])
    assert [named["split_ranks"] for named in split] == [[[*range(32)], [*range(32, 64)]]]
    Mesh(WIDE)
    assert len(split) == 1 + KINDS
    for named in split:
        assert sorted(itertools.chain(*named["split_ranks"])) == list(range(WIDE.world_size))


@pytest.mark.parametrize(
    ("world_size", "ranks_here", "gpus", "expected"),
    [
        (16, 8, 8, ("nccl", torch.device("cuda", 3))),
        (4, 4, 1, ("gloo", None)),  # NCCL refuses two ranks on one GPU
        (1, 1, 8, ("nccl", None)),  # nobody to connect to
        (2, 2, 0, ("gloo", None)),  # ranks on CPUs
    ],
)
def test_nccl_connects_as_it_joins(
    world_size: int,
    ranks_here: int,
    gpus: int,
    expected: tuple[str, torch.device | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the arguments can be seen without a GPU."""
    joined: list[Any] = []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks_here))
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr("trainables.deepspeed_llm.rank.bind_to_gpu", lambda device: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(dist, "init_process_group", lambda name, **n: joined.append((name, n)))
    monkeypatch.setattr(deepspeed, "init_distributed", lambda **named: None)
    place = Place(rank=3, local_rank=3, world_size=world_size, store=FakeStore())
    with process_group(place, "gpu" if gpus else "cpu"):
        ((backend, named),) = joined
        assert (backend, named.get("device_id")) == expected
        assert (named["rank"], named["world_size"]) == (3, world_size)
