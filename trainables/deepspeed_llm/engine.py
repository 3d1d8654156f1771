"""Build the DeepSpeed engine that a layout needs (plain or pipeline) and run optimiser steps."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol, cast

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import PipelineParallelGrid, PipeModelDataParallelTopology
from torch import Tensor, nn

from autotune.layout import Layout
from autotune.model import Precision
from autotune.trial.deepspeed_config import clips_itself, engine_of
from trainables.deepspeed_llm.build import Build
from trainables.deepspeed_llm.clipping import ClippedNorm
from trainables.deepspeed_llm.decoder import Block, Decoder, Head
from trainables.deepspeed_llm.tensor_parallel import TensorParallel
from trainables.deepspeed_llm.vocabulary import Embedding, PositionEmbedding

Batch = tuple[Tensor, Tensor]

# Llama 2's AdamW (Touvron et al. 2023, arXiv 2307.09288, section 2.2).
_LEARNING_RATE = 3e-4
_BETAS = (0.9, 0.95)
_EPSILON = 1e-5
_WEIGHT_DECAY = 0.1


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


class Mesh:
    """The process groups of a layout: tensor, pipeline and data parallel."""

    def __init__(self, layout: Layout) -> None:
        """Create the process groups. A collective call: every rank must make it."""
        self.topology = PipeModelDataParallelTopology(
            num_pp=layout.pipeline_parallel,
            num_mp=layout.tensor_parallel,
            num_dp=layout.data_parallel,
        )
        self.parallel = TensorParallel()
        if layout.tensor_parallel > 1:
            self.parallel = self._tensor_parallel(layout)
        # PipelineModule creates an equal grid itself.
        self.grid = None
        if engine_of(layout) == "plain":
            self.grid = PipelineParallelGrid(topology=self.topology)

    def _tensor_parallel(self, layout: Layout) -> TensorParallel:
        rank, own_group = dist.get_rank(), None
        for ranks in self.topology.get_axis_comm_lists("model"):
            group = dist.new_group(ranks)
            if rank in ranks:
                own_group = TensorParallel(
                    size=len(ranks),
                    rank=ranks.index(rank),
                    sequence_parallel=layout.sequence_parallel,
                    group=group,
                )
        assert own_group is not None, "every rank is in one tensor-parallel group"
        return own_group


def build_engine(build: Build, mesh: Mesh, config: dict[str, Any], precision: Precision) -> Engine:
    """Build the layout's model, its optimiser and the DeepSpeed engine around them."""
    if engine_of(build.layout) == "pipeline":
        return _PipelineEngine(build, mesh, config, precision)
    return _PlainEngine(build, mesh, config, precision)


class _PlainEngine:
    """DeepSpeed's engine without pipeline stages, for every ZeRO stage."""

    def __init__(
        self, build: Build, mesh: Mesh, config: dict[str, Any], precision: Precision
    ) -> None:
        assert mesh.grid is not None
        self._layout = build.layout
        self._device = build.device
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
        optimizer = _optimizer(model)
        self._norm = None
        if clips_itself(build.layout, precision, config):
            self._norm = ClippedNorm(optimizer, mesh.grid.get_model_parallel_group())
        self._engine = deepspeed.initialize(
            model=model, optimizer=optimizer, mpu=mesh.grid, config=config
        )[0]
        _count_shard(self._norm, self._engine, build.layout)

    def step(self, batch: Batch) -> StepResult:
        steps = self._layout.gradient_accumulation_steps
        total = torch.zeros((), device=self._device, dtype=torch.float32)
        for tokens, targets in micro_batches(batch, self._layout.micro_batch_size):
            loss = self._engine(tokens, targets)
            self._engine.backward(loss)
            self._engine.step()
            total += loss.detach() / steps
        dist.all_reduce(total, group=self._data_group)
        loss_mean = float(total) / self._layout.data_parallel
        return StepResult(loss=loss_mean, grad_norm=_grad_norm(self._norm, self._engine))


class _PipelineEngine:
    """DeepSpeed's 1F1B pipeline engine: ZeRO stages 0 and 1."""

    def __init__(
        self, build: Build, mesh: Mesh, config: dict[str, Any], precision: Precision
    ) -> None:
        self._layout = build.layout
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
        optimizer = _optimizer(module)
        self._norm = None
        if clips_itself(build.layout, precision, config):
            self._norm = ClippedNorm(optimizer, module._grid.get_model_parallel_group())
        self._engine = deepspeed.initialize(model=module, optimizer=optimizer, config=config)[0]
        _count_shard(self._norm, self._engine, build.layout)

    def step(self, batch: Batch) -> StepResult:
        loss = self._engine.train_batch(
            data_iter=micro_batches(batch, self._layout.micro_batch_size)
        )
        return StepResult(loss=float(loss), grad_norm=_grad_norm(self._norm, self._engine))


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


def _optimizer(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        model.parameters(),
        lr=_LEARNING_RATE,
        betas=_BETAS,
        eps=_EPSILON,
        weight_decay=_WEIGHT_DECAY,
        fused=True,
    )


def _count_shard(norm: ClippedNorm | None, engine: Any, layout: Layout) -> None:
    if norm is not None and layout.zero_stage > 0:
        norm.count_shard_of(engine.optimizer)


def _grad_norm(norm: ClippedNorm | None, engine: Any) -> float:
    value = norm.value if norm is not None else engine.get_global_grad_norm()
    assert value is not None, "DeepSpeed computes the norm where ClippedNorm does not"
    return float(cast(Tensor | float, value))
