"""One rank: join the process group and build the engine; for a trial, train and report steps."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from autotune.trial.corpus import text_files
from autotune.trial.deepspeed_config import deepspeed_config
from autotune.trial.trace import RankTrace
from autotune.trial.trial import RankStep, TrialSpec
from trainables.deepspeed_llm.build import Build
from trainables.deepspeed_llm.data import batch_slice
from trainables.deepspeed_llm.engine import Batch, Engine, Mesh, StepResult, build_engine
from trainables.deepspeed_llm.garbage import collected_between_steps
from trainables.deepspeed_llm.groups import COLLECTIVE_TIMEOUT
from trainables.deepspeed_llm.hyperparameters import WEIGHT_DECAY
from trainables.deepspeed_llm.memory import (
    CpuPeakMemory,
    CudaPeakMemory,
    PeakMemory,
    memory_limit,
)
from trainables.deepspeed_llm.numa import bind_to_gpu
from trainables.deepspeed_llm.probe import DeviceProbe
from trainables.deepspeed_llm.tokens import InOrder, SyntheticTokens, TextTokens, TokenSource
from trainables.deepspeed_llm.tracing import Recorder


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A rank's numbers and its rendezvous."""

    rank: int
    local_rank: int
    world_size: int
    store: Store | None = None
    """The rendezvous store; None: from the environment variables (torchrun)."""


@contextlib.contextmanager
def process_group(place: Place, device_kind: str) -> Iterator[torch.device]:
    """Join the default process group; yields this rank's device."""
    if device_kind == "gpu":
        gpus, ranks_here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        device = torch.device("cuda", place.local_rank % gpus)
        os.environ["LOCAL_RANK"] = str(device.index)  # DeepSpeed chooses its device by it
        torch.cuda.set_device(device)
        bind_to_gpu(device)
        # NCCL refuses two ranks on one GPU. gloo allows it, by copying through the host.
        backend = "nccl" if ranks_here <= gpus else "gloo"
    else:
        device = torch.device("cpu")
        torch.set_num_threads(1)
        backend = "gloo"
        # Prevents DeepSpeed from compiling its shared-memory extension at the first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    rendezvous: dict[str, Any] = {}
    if place.store is not None:
        rendezvous = {
            "store": place.store,
            "rank": place.rank,
            "world_size": place.world_size,
        }
    if backend == "nccl" and place.world_size > 1:
        # NCCL connects all ranks at once, here, and splits further groups off (`groups.own_group`).
        rendezvous["device_id"] = device
    dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT, **rendezvous)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    yield device


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """This rank's engine, ready to train, and what belongs to it."""

    engine: Engine
    device: torch.device
    replica: int
    """Which replica of the model the rank belongs to, from 0."""
    memory: PeakMemory

    def to_device(self, batch: Batch) -> Batch:
        """Copy a batch to the rank's device."""
        tokens, targets = batch
        return tokens.to(self.device), targets.to(self.device)

    def step(self, batch: Batch) -> StepResult:
        """One optimiser step over a batch on the device; returns when the device has done it."""
        result = self.engine.step(batch)
        self.synchronise()
        return result

    def synchronise(self) -> None:
        """Wait until the GPU has finished its queue; a no-op on CPUs."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextlib.contextmanager
def worker(
    spec: TrialSpec,
    place: Place,
    device: torch.device,
    *,
    config: Mapping[str, Any] | None = None,
    weight_decay: float = WEIGHT_DECAY,
) -> Iterator[Worker]:
    """Build this rank's engine under the memory limit, which is lifted on leaving.

    `config` replaces the DeepSpeed configuration made from the layout. A collective call.
    """
    layout, model = spec.layout, spec.model
    mesh = Mesh(layout)
    build = Build(
        model=model,
        layout=layout,
        parallel=mesh.parallel,
        device=device,
        dtype=torch.bfloat16 if spec.precision == "bf16" else torch.float32,
        seed=spec.seed,
    )
    if config is None:
        config = deepspeed_config(
            layout,
            model,
            precision=spec.precision,
            overlap_communication=device.type == "cuda",
        )
    memory = CudaPeakMemory() if device.type == "cuda" else CpuPeakMemory()
    with memory_limit(spec.cluster.memory_gib, device):
        ready = Worker(
            engine=build_engine(build, mesh, config, weight_decay=weight_decay),
            device=device,
            replica=mesh.topology.get_coord(place.rank).data,
            memory=memory,
        )
        ready.synchronise()
        yield ready


def train(
    spec: TrialSpec,
    place: Place,
    *,
    on_ready: Callable[[], None],
    on_step: Callable[[RankStep], None],
    on_trace: Callable[[RankTrace], None],
) -> None:
    """Train the trial's steps on this rank; calls `on_step` after each, and `on_trace` at the end
    where steps are traced.

    Exceptions of the training pass through, after the memory limit is lifted.
    """
    samples = InOrder(_token_source(spec), spec.model.sequence_length)
    layout, now = spec.layout, spec.layout.gradient_accumulation_steps
    with process_group(place, spec.cluster.device.kind) as device:
        probe = DeviceProbe(device)
        with worker(spec, place, device) as ready, collected_between_steps() as collect:
            on_ready()
            recorder = None
            for step in range(spec.all_steps):
                asked = spec.micro_batches(step) or layout.gradient_accumulation_steps
                if asked != now:
                    now = asked
                    ready.engine.set_micro_batches(now)
                batch = batch_slice(
                    samples,
                    step,
                    global_batch_size=now * layout.micro_batch_size * layout.data_parallel,
                    replica=ready.replica,
                    replicas=layout.data_parallel,
                )
                # Not timed: a training run loads the next batch while a step computes.
                batch = ready.to_device(batch)
                if step == spec.first_traced_step:
                    recorder = Recorder(device)
                    ready.engine.record(recorder)
                if recorder is not None:
                    recorder.begin()
                started = time.perf_counter()
                result = ready.step(batch)
                seconds = time.perf_counter() - started
                if recorder is not None:
                    recorder.end(step)
                on_step(
                    RankStep(
                        rank=place.rank,
                        step=step,
                        step_seconds=seconds,
                        loss=result.loss,
                        grad_norm=result.grad_norm,
                        peak_memory_gib=ready.memory.in_use(),
                        peak_reserved_gib=ready.memory.reserved(),
                        probe_seconds=probe.seconds(),
                    )
                )
                collect()
            if recorder is not None:
                on_trace(recorder.trace(place.rank))


def _token_source(spec: TrialSpec) -> TokenSource:
    if spec.synthetic_data:
        return SyntheticTokens(spec.model.vocab_size, spec.seed)
    return TextTokens(text_files(spec.data))
