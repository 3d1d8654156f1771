"""Traces a step of one rank."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autotune.trial.deepspeed_config import deepspeed_config, engine_of
from autotune.trial.traced import TracedRank
from autotune.trial.trial import TrialSpec
from trainables.deepspeed_llm.build import Build
from trainables.deepspeed_llm.engine import Mesh, build_engine
from trainables.deepspeed_llm.garbage import collected_between_steps
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


def trace_rank(spec: TrialSpec, stage: int, *, of_gpus: bool = True) -> TracedRank:
    """Trace the first rank of a pipeline stage, in a process that does nothing else.

    `of_gpus`: with the streams of GPUs and communication in them, else as on CPUs.
    """
    rank = stage * spec.layout.world_size // spec.layout.pipeline_parallel
    in_side_stream = join_without_peers(rank, spec.layout.world_size, streams=of_gpus)
    with FakeTensorMode(allow_non_fake_inputs=True), Answers():
        return counted_rank(
            spec,
            rank,
            in_side_stream=in_side_stream,
            prepare=_without_peers,
            overlap_communication=of_gpus,
        )


def counted_rank(
    spec: TrialSpec,
    rank: int,
    *,
    in_side_stream: Callable[[], bool],
    prepare: Callable[[Any, Build], None] = lambda engine, build: None,
    overlap_communication: bool = True,
) -> TracedRank:
    """Build this rank's engine in the process group that exists, and count a step.

    Few micro-batches fill the pipeline and have gradients of earlier ones beside them; every
    further one does the same. `in_side_stream`: whether operations go to another stream than the
    computation's. `prepare` is given DeepSpeed's engine before the first step.
    """
    layout, model = spec.layout, spec.model
    mesh = Mesh(layout)
    micro_batches = layout.gradient_accumulation_steps
    few = min(layout.pipeline_parallel + 1, micro_batches)
    counting = Counting(Collectives(mesh.topology), in_side_stream)
    with counting, kernels_of_gpus(counting.as_one), contextlib.ExitStack() as steps:
        build = Build(
            model=model,
            layout=layout,
            parallel=mesh.parallel,
            device=torch.device("cpu"),
            dtype=torch.bfloat16 if spec.precision == "bf16" else torch.float32,
            seed=spec.seed,
        )
        config = deepspeed_config(
            layout,
            model,
            precision=spec.precision,
            overlap_communication=overlap_communication,
        )
        engine = build_engine(build, mesh, config)
        deepspeed_engine: Any = engine._engine  # type: ignore[attr-defined]
        _separate_phases(deepspeed_engine, engine_of(layout), counting)
        prepare(deepspeed_engine, build)

        # As in a trial: else what is in cycles would be freed at any time.
        collect = steps.enter_context(collected_between_steps())

        def step(count: int) -> None:
            collect()
            engine.set_micro_batches(count)
            counting.begin_step()
            sequences = count * layout.micro_batch_size
            tokens = torch.zeros(sequences, model.sequence_length, dtype=torch.long)
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
        stage=mesh.topology.get_coord(rank).pipe,
        peak_memory_gib=max(phases.values()),
        phases=phases,
        live_at_peak=live,
        collectives=extrapolated(collectives, more_collectives, further),
        flops=flops,
        operations=operations,
    )


def _separate_phases(engine: Any, kind: str, counting: Counting) -> None:
    """Have the methods of DeepSpeed's engine tell their phase."""
    for name, phase in _PHASES[kind].items():
        setattr(engine, name, _in_phase(getattr(engine, name), phase, counting))
    instructions = getattr(engine, "_INSTRUCTION_MAP", {})
    engine._INSTRUCTION_MAP = {
        instruction: _of_engine(getattr(engine, execute.__name__))
        if execute.__name__ in _PHASES[kind]
        else execute
        for instruction, execute in instructions.items()
    }


def _of_engine(method: Callable[..., Any]) -> Callable[..., Any]:
    """As a function of the engine's class, which is what DeepSpeed looks up."""
    return lambda engine, *arguments, **named: method(*arguments, **named)


def _in_phase(method: Callable[..., Any], phase: str, counting: Counting) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        with counting.phase(phase):
            return method(*arguments, **named)

    return run


def _without_peers(engine: Any, build: Build) -> None:
    """Pipeline stages tell each other the shape of what they send, once; no one tells this one."""
    layout, model = build.layout, build.model
    shards = layout.tensor_parallel if layout.sequence_parallel else 1
    shape = [model.sequence_length // shards, layout.micro_batch_size, model.hidden_size]
    engine._recv_tensor_meta = lambda stage: engine._allocate_or_extend_buffers(
        0, shape, build.dtype
    )
    engine._send_tensor_meta = lambda *_: None
