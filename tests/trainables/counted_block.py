"""Run as a module: counts what one block of a layout keeps, starts and sends, without peers.

    python -m tests.trainables.counted_block '[[{"tensor_parallel": 8}, {"hidden_size": 64, ...}]]'

The process group has this rank only, and tensors have no values unless the block is compiled. A
line of JSON for each pair of a layout and a model: `kept`, the bytes of the storages that autograd
keeps for the backward pass, without parameters and rotary tables; and of each pass `operations`,
and `order`, its matrix products, and collectives as they begin and are waited for.
"""

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from autotune.layout import layout_from_mapping
from autotune.model import Model
from autotune.trial.deepspeed_config import clips_itself
from trainables.deepspeed_llm import tensor_parallel
from trainables.deepspeed_llm.build import Build
from trainables.deepspeed_llm.decoder import Block
from trainables.deepspeed_llm.rotary import table_of
from trainables.deepspeed_llm.tensor_parallel import TensorParallel
from trainables.deepspeed_llm.traced.collectives import Collectives
from trainables.deepspeed_llm.traced.counting import Counting
from trainables.deepspeed_llm.traced.without_devices import kernels_of_gpus

_PRODUCTS = ("aten.mm.", "aten.addmm.", "aten.bmm.")
_COLLECTIVES = ("all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce")


class _Products(TorchDispatchMode):
    """Notes each matrix product."""

    def __init__(self, order: list[str]) -> None:
        super().__init__()
        self._order = order

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(_PRODUCTS):
            self._order.append("product")
        return func(*args, **(kwargs or {}))


class _Work:
    def __init__(self, name: str, order: list[str]) -> None:
        self._name, self._order = name, order

    def wait(self) -> None:
        self._order.append(f"wait {self._name}")


class _NotedCollectives:
    """In the place of torch.distributed: notes when a collective begins and is waited for."""

    def __init__(self, order: list[str]) -> None:
        self._order = order

    def __getattr__(self, name: str) -> Any:
        function = getattr(dist, name)
        return self._noted(name, function) if name in _COLLECTIVES else function

    def _noted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, async_op: bool = False, **named: Any) -> _Work | None:
            self._order.append(f"start {name}" if async_op else name)
            function(*args, **named)
            return _Work(name, self._order) if async_op else None

        return call


def count(
    of_layout: dict[str, Any], of_model: dict[str, Any], trained: bool = True
) -> dict[str, Any]:
    """Run both passes of the model's first block, with its weights trained or not."""
    model = Model(**of_model)
    layout = layout_from_mapping(of_layout, model)
    size = layout.tensor_parallel
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    parallel = TensorParallel(
        size=size,
        sequence_parallel=layout.sequence_parallel,
        group=dist.group.WORLD,
        once_per_step=clips_itself(layout),
    )
    order: list[str] = []
    noted: Any = dist if layout.torch_compile else _NotedCollectives(order)
    tensor_parallel.dist = noted  # type: ignore[assignment]
    topology = PipeModelDataParallelTopology(num_pp=1, num_mp=size, num_dp=1)
    counting = Counting(Collectives(topology), lambda: False)
    counting.allocations.enter("other")
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in shared:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    # torch.compile wants values, and the mode of a graph that it traces is its own.
    without_values = FakeTensorMode(allow_non_fake_inputs=True)
    with contextlib.nullcontext() if layout.torch_compile else without_values:
        device, dtype = torch.device("cpu"), torch.bfloat16
        build = Build(model=model, layout=layout, parallel=parallel, device=device, dtype=dtype)
        block = Block(build, 0)
        if layout.torch_compile:  # whole, or an error; only its code for CPUs is left out
            backend = "aot_eager_decomp_partition"
            block.run = torch.compile(block._run, backend=backend, fullgraph=True)
        for parameter in block.parameters():
            parameter.requires_grad = trained
        tables = table_of(model, 0, device, dtype)
        shared = {x.untyped_storage()._cdata for x in (*block.parameters(), *tables)}
        shard = model.sequence_length // (size if layout.sequence_parallel else 1)
        shape = (shard, layout.micro_batch_size, model.hidden_size)
        x = torch.empty(shape, dtype=dtype, requires_grad=True)
        passes = []
        with contextlib.ExitStack() as modes:
            if not layout.torch_compile:
                modes.enter_context(counting)
                modes.enter_context(_Products(order))
                modes.enter_context(kernels_of_gpus(counting.as_one))
            residual = x * 1  # as from another block
            counting.begin_step()
            with saved_tensors_hooks(keep, lambda tensor: tensor):
                y = block(residual)
            passes.append({"operations": counting.operations, "order": list(order)})
            gradient = torch.empty_like(y)
            counting.begin_step()
            order.clear()
            y.backward(gradient)
            passes.append({"operations": counting.operations, "order": list(order)})
    dist.destroy_process_group()
    return {"kept": list(kept.values()), "forward": passes[0], "backward": passes[1]}


def main() -> None:
    """Count the cases; prints in their order."""
    for case in json.loads(sys.argv[1]):
        print(json.dumps(count(*case)), flush=True)


if __name__ == "__main__":
    main()
