"""Build the DeepSpeed engine that a layout needs (plain or pipeline) and run optimiser steps."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import PipelineParallelGrid, PipeModelDataParallelTopology
from torch import Tensor, nn

from autotune.layout import Layout
from autotune.trial.deepspeed_config import (
    GRADIENT_CLIPPING,
    clips_itself,
    engine_of,
    without_clipping,
)
from trainables.deepspeed_llm.build import Build
from trainables.deepspeed_llm.clipping import ClippedNorm
from trainables.deepspeed_llm.decoder import Block, Decoder, Head
from trainables.deepspeed_llm.groups import Groups
from trainables.deepspeed_llm.hyperparameters import WEIGHT_DECAY
from trainables.deepspeed_llm.optimizer import adamw, set_learning_rate
from trainables.deepspeed_llm.tensor_parallel import TensorParallel
from trainables.deepspeed_llm.tracing import Recorder
from trainables.deepspeed_llm.vocabulary import Embedding, PositionEmbedding

Batch = tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What an optimiser step returns, the same on every rank."""

    loss: float
    grad_norm: float


class Engine(Protocol):
    """Trains one layout."""

    def step(self, batch: Batch) -> StepResult:
        """One optimiser step over this replica's [sequences, sequence_length] tokens on its device.

        The host synchronises with the GPU only once, at the end, to read loss and norm."""

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this learning rate from the next step on."""

    def evaluate(self, batch: Batch) -> float:
        """Mean loss of all replicas' batches, shaped as in `step`, without training on them."""

    def set_micro_batches(self, count: int) -> None:
        """Run steps of `count` micro-batches from now on. Call it between two steps."""

    def record(self, recorder: Recorder) -> None:
        """Have the recorder note the passes from now on."""

    def save(self, directory: Path, tag: str, client_state: dict[str, Any]) -> None:
        """Write DeepSpeed's checkpoint into directory/tag. A collective call."""

    def load(self, directory: Path, tag: str) -> dict[str, Any]:
        """Read weights and optimiser from directory/tag; returns the client state that was saved.

        A collective call. Raises what DeepSpeed and torch raise for files that are not theirs."""


class Mesh:
    """The process groups of a layout: tensor, pipeline and data parallel."""

    def __init__(self, layout: Layout) -> None:
        """Create the process groups, for DeepSpeed too. A collective call: every rank must make
        it."""
        self.topology = PipeModelDataParallelTopology(
            num_pp=layout.pipeline_parallel,
            num_mp=layout.tensor_parallel,
            num_dp=layout.data_parallel,
        )
        self._groups = Groups()
        self._groups.make(
            self.topology.get_axis_list("data", replica) for replica in range(layout.data_parallel)
        )
        for axis in self.topology.get_axis_names():
            self._groups.make(self.topology.get_axis_comm_lists(axis))
        self._groups.give_to_deepspeed()
        # PipelineModule creates another one itself, of the same groups.
        self.grid = PipelineParallelGrid(topology=self.topology)
        self.parallel = TensorParallel()
        if layout.tensor_parallel > 1:
            self.parallel = TensorParallel(
                size=layout.tensor_parallel,
                rank=self.grid.get_slice_parallel_rank(),
                sequence_parallel=layout.sequence_parallel,
                group=self.grid.slice_proc_group,
                once_per_step=clips_itself(layout),
            )

    def join_ends(self) -> None:
        """Create the groups of first and last stage, which tied weights need. A collective call."""
        pipelines = self.topology.get_axis_comm_lists("pipe")
        self._groups.make((ranks[0], ranks[-1]) for ranks in pipelines)


def build_engine(
    build: Build, mesh: Mesh, config: Mapping[str, Any], *, weight_decay: float = WEIGHT_DECAY
) -> Engine:
    """Build the layout's model, its optimiser and the DeepSpeed engine around them.

    `config` is DeepSpeed's configuration; it clips itself where `clips_itself` says so.
    """
    if engine_of(build.layout) == "pipeline":
        return _PipelineEngine(build, mesh, config, weight_decay)
    return _PlainEngine(build, mesh, config, weight_decay)


class _DeepSpeedEngine:
    """What both engines have in common: initialisation around a model, clipping, checkpoints."""

    def __init__(self, build: Build, model: nn.Module, weight_decay: float) -> None:
        self._layout, self._parallel = build.layout, build.parallel
        self._micro_batches = build.layout.gradient_accumulation_steps
        self._device = build.device
        self._model = model
        self._optimizer = adamw(model, weight_decay)
        self._norm: ClippedNorm | None = None

    def _initialize(
        self, grid: PipelineParallelGrid, config: Mapping[str, Any], **more: Any
    ) -> None:
        if clips_itself(self._layout):
            self._norm = ClippedNorm(
                self._optimizer,
                grid.get_model_parallel_group(),
                parallel=self._parallel,
                largest=config.get("gradient_clipping", GRADIENT_CLIPPING),
            )
            config = without_clipping(config)
        self._engine: Any = deepspeed.initialize(
            model=self._model, optimizer=self._optimizer, config=config, **more
        )[0]
        if self._norm is not None and self._layout.zero_stage > 0:
            self._norm.count_shards_of(self._engine.optimizer)

    def set_learning_rate(self, learning_rate: float) -> None:
        set_learning_rate(self._optimizer, learning_rate)

    def set_micro_batches(self, count: int) -> None:
        engine = self._engine
        per_count = engine.train_micro_batch_size_per_gpu() * engine.dp_world_size
        engine.set_train_batch_size(count * per_count)
        engine.micro_steps = 0  # a step ends at a multiple of the number
        self._micro_batches = count

    def record(self, recorder: Recorder) -> None:
        recorder.attach(self._engine)

    def save(self, directory: Path, tag: str, client_state: dict[str, Any]) -> None:
        self._engine.save_checkpoint(
            str(directory), tag=tag, client_state=client_state, save_latest=False
        )

    def load(self, directory: Path, tag: str) -> dict[str, Any]:
        _, state = self._engine.load_checkpoint(str(directory), tag=tag)
        return cast(dict[str, Any], state)

    def _grad_norm(self) -> float:
        norm = self._engine.get_global_grad_norm() if self._norm is None else self._norm.value
        assert norm is not None, "DeepSpeed computes the norm where ClippedNorm does not"
        return float(cast(Tensor | float, norm))


class _PlainEngine(_DeepSpeedEngine):
    """DeepSpeed's engine without pipeline stages, for every ZeRO stage."""

    def __init__(
        self, build: Build, mesh: Mesh, config: Mapping[str, Any], weight_decay: float
    ) -> None:
        self._data_group = mesh.grid.get_data_parallel_group()
        # ZeRO 3 shards each layer as soon as it is built, so no rank ever holds the whole model.
        # The dtype is taken from the configuration: DeepSpeed 0.19.8 ignores the `dtype` argument
        # on CPUs.
        with deepspeed.zero.Init(
            data_parallel_group=self._data_group,
            config_dict_or_path=config,
            mem_efficient_linear=False,
            enabled=build.layout.zero_stage == 3,
        ):
            model = Decoder(build)
        super().__init__(build, model, weight_decay)
        self._initialize(mesh.grid, config, mpu=mesh.grid)

    def step(self, batch: Batch) -> StepResult:
        total = torch.zeros((), device=self._device, dtype=torch.float32)
        for tokens, targets in micro_batches(batch, self._layout.micro_batch_size):
            loss = self._engine(tokens, targets)
            self._engine.backward(loss)
            self._engine.step()
            total += loss.detach() / self._micro_batches
        return StepResult(loss=self._mean(total), grad_norm=self._grad_norm())

    def evaluate(self, batch: Batch) -> float:
        total = torch.zeros((), device=self._device, dtype=torch.float32)
        self._engine.eval()
        with torch.no_grad():
            for tokens, targets in micro_batches(batch, self._layout.micro_batch_size):
                total += self._engine(tokens, targets) / self._micro_batches
        self._engine.train()
        return self._mean(total)

    def _mean(self, loss: Tensor) -> float:
        dist.all_reduce(loss, group=self._data_group)
        return float(loss) / self._layout.data_parallel


class _PipelineEngine(_DeepSpeedEngine):
    """DeepSpeed's 1F1B pipeline engine: ZeRO stages 0 and 1."""

    def __init__(
        self, build: Build, mesh: Mesh, config: Mapping[str, Any], weight_decay: float
    ) -> None:
        if build.model.tie_word_embeddings:
            mesh.join_ends()
        module: Any = PipelineModule(
            _pipeline_layers(build),
            topology=mesh.topology,
            # Only the last stage calls this.
            loss_fn=lambda hidden, targets: _head_of(module).lm_head(hidden, targets),
            partition_method="type:Block",
        )
        head = _head_of(module)
        if build.model.tie_word_embeddings and head is not None:
            head.lm_head.tie(module.tied_modules[_TIED])
        super().__init__(build, module, weight_decay)
        self._initialize(module._grid, config)

    def step(self, batch: Batch) -> StepResult:
        loss = self._engine.train_batch(
            data_iter=micro_batches(batch, self._layout.micro_batch_size)
        )
        return StepResult(loss=float(loss), grad_norm=self._grad_norm())

    def evaluate(self, batch: Batch) -> float:
        return float(
            self._engine.eval_batch(data_iter=micro_batches(batch, self._layout.micro_batch_size))
        )


# Key of the embedding among DeepSpeed's tied layers.
_TIED = "embedding"


def _pipeline_layers(build: Build) -> list[LayerSpec]:
    """The layers in order. Tied weights are those of a layer that is in the list twice: DeepSpeed
    builds it on both stages, and adds up the gradients of its weight."""
    model = build.model
    layers = [LayerSpec(Block, build, index) for index in range(model.num_hidden_layers)]
    if model.positions == "learned":
        layers.insert(0, LayerSpec(PositionEmbedding, build))
    if not model.tie_word_embeddings:
        return [LayerSpec(Embedding, build), *layers, LayerSpec(Head, build)]
    embedding = TiedLayerSpec(_TIED, Embedding, build)
    # The head calculates with the embedding's matrix; this layer only passes on its output.
    again = TiedLayerSpec(_TIED, Embedding, build, forward_fn=lambda embedding, hidden: hidden)
    return [embedding, *layers, LayerSpec(Head, build), again]


def _head_of(module: PipelineModule) -> Any:
    """The head, on the last stage; None on the others."""
    return next((layer for layer in module.forward_funcs if isinstance(layer, Head)), None)


def micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    """Split a replica's batch into contiguous micro-batches of `size` sequences."""
    tokens, targets = batch
    yield from zip(tokens.split(size), targets.split(size), strict=True)
