"""Traces a step of one rank."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autotune.trial.deepspeed_config import deepspeed_config, engine_of
from autotune.trial.traced import TracedRank
from autotune.trial.trial import TrialSpec
from trainables.deepspeed_llm.build import Build
from trainables.deepspeed_llm.engine import Engine, Mesh, build_engine
from trainables.deepspeed_llm.traced.collectives import Collectives, extrapolated
from trainables.deepspeed_llm.traced.counting import Counting
from trainables.deepspeed_llm.traced.without_devices import (
    Answers,
    join_without_peers,
    kernels_of_gpus,
)

# Methods of DeepSpeed's engines by the phase of a step that they are.
_PHASES: Mapping[str, Mapping[str, str]] = {
    "plain": {
        "forward": "forward",
        "backward": "backward",
        "_take_model_step": "update",
    },
    "pipeline": {
        "_exec_forward_pass": "forward",
        "_exec_backward_pass": "backward",
        "_exec_reduce_grads": "reduction",
        "_take_model_step": "update",
    },
}


def trace_rank(spec: TrialSpec, stage: int) -> TracedRank:
    """Trace the first rank of a pipeline stage, in a process that does nothing else.

    Few micro-batches fill the pipeline and have gradients of earlier ones beside them; every
    further one does the same.
    """
    layout, model = spec.layout, spec.model
    ranks_per_stage = layout.world_size // layout.pipeline_parallel
    rank = stage * ranks_per_stage
    accelerator = join_without_peers(rank, layout.world_size)
    micro_batches = layout.gradient_accumulation_steps
    few = min(layout.pipeline_parallel + 1, micro_batches)
    with FakeTensorMode(allow_non_fake_inputs=True):
        mesh = Mesh(layout)
        counting = Counting(Collectives(mesh.topology), accelerator.in_side_stream)
        with counting, Answers(), kernels_of_gpus(counting.as_one):
            counting.allocations.enter("other")
            build = Build(
                model=model,
                layout=layout,
                parallel=mesh.parallel,
                device=torch.device("cpu"),
                seed=spec.seed,
                dtype=torch.bfloat16 if spec.precision == "bf16" else torch.float32,
            )
            config = deepspeed_config(
                layout, model, precision=spec.precision, overlap_communication=True
            )
            engine = build_engine(build, mesh, config)
            _separate_phases(engine, engine_of(layout), counting)
            _ignore_messages_about_shapes(engine, build)

            def step(count: int) -> None:
                engine.set_micro_batches(count)
                counting.begin_step()
                tokens = torch.zeros(
                    count * layout.micro_batch_size, model.sequence_length, dtype=torch.long
                )
                engine.step((tokens, tokens))

            step(1)  # makes the optimiser's states
            step(few)
            phases = counting.allocations.peaks_gib()
            live = counting.allocations.live_at_peak()
            counts = counting.collectives.counted(), counting.flops, counting.operations
            if few < micro_batches:
                step(few + 1)
            more = counting.collectives.counted(), counting.flops, counting.operations
    further = micro_batches - few
    (collectives, *totals), (more_collectives, *more_totals) = counts, more
    flops, operations = (
        first + further * (second - first)
        for first, second in zip(totals, more_totals, strict=True)
    )
    return TracedRank(
        rank=rank,
        stage=stage,
        peak_memory_gib=max(phases.values()),
        phases=phases,
        live_at_peak=live,
        collectives=extrapolated(collectives, more_collectives, further),
        flops=flops,
        operations=operations,
    )


def _separate_phases(engine: Engine, kind: str, counting: Counting) -> None:
    deepspeed_engine: Any = engine._engine  # type: ignore[attr-defined]
    for name, phase in _PHASES[kind].items():
        method = getattr(deepspeed_engine, name)
        setattr(deepspeed_engine, name, _in_phase(method, phase, counting))
    for instruction, execute in getattr(deepspeed_engine, "_INSTRUCTION_MAP", {}).items():
        name = execute.__name__
        if name in _PHASES[kind]:
            own = _of_engine(getattr(deepspeed_engine, name))
            instructions = {**deepspeed_engine._INSTRUCTION_MAP, instruction: own}
            deepspeed_engine._INSTRUCTION_MAP = instructions


def _of_engine(method: Callable[..., Any]) -> Callable[..., Any]:
    """As a function of the engine's class, which is what DeepSpeed looks up."""
    return lambda engine, *arguments, **named: method(*arguments, **named)


def _in_phase(method: Callable[..., Any], phase: str, counting: Counting) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        with counting.phase(phase):
            return method(*arguments, **named)

    return run


def _ignore_messages_about_shapes(engine: Engine, build: Build) -> None:
    """Pipeline stages tell each other the shape of what they send, once; no one tells this one."""
    deepspeed_engine: Any = engine._engine  # type: ignore[attr-defined]
    if engine_of(build.layout) != "pipeline":
        return
    layout, model = build.layout, build.model
    shards = layout.tensor_parallel if layout.sequence_parallel else 1
    shape = [model.sequence_length // shards, layout.micro_batch_size, model.hidden_size]

    def receive(stage: int) -> Any:
        return deepspeed_engine._allocate_or_extend_buffers(0, shape, build.dtype)

    deepspeed_engine._recv_tensor_meta = receive
    deepspeed_engine._send_tensor_meta = lambda *_: None
