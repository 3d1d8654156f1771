"""One rank of a trial: join the process group, build the engine, train and report each step."""

import contextlib
import dataclasses
import datetime
import os
import time
from collections.abc import Callable, Iterator

import deepspeed
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from autotune.trial.corpus import text_files
from autotune.trial.deepspeed_config import deepspeed_config
from autotune.trial.trial import RankStep, TrialSpec
from trainables.deepspeed_llm.build import Build
from trainables.deepspeed_llm.data import (
    SyntheticTokens,
    TextTokens,
    TokenSource,
    batch_slice,
)
from trainables.deepspeed_llm.engine import Mesh, build_engine
from trainables.deepspeed_llm.memory import CpuPeakMemory, CudaPeakMemory, memory_limit
from trainables.deepspeed_llm.probe import DeviceProbe

# The tuner's own deadlines end a trial that hangs; this timeout only has to be longer.
_COLLECTIVE_TIMEOUT = datetime.timedelta(hours=2)


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
        # NCCL refuses two ranks on one GPU. gloo allows it, by copying through the host.
        backend = "nccl" if ranks_here <= gpus else "gloo"
    else:
        device = torch.device("cpu")
        torch.set_num_threads(1)
        backend = "gloo"
        # Prevents DeepSpeed from compiling its shared-memory extension at the first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if place.store is None:
        dist.init_process_group(backend, timeout=_COLLECTIVE_TIMEOUT)
    else:
        dist.init_process_group(
            backend,
            store=place.store,
            rank=place.rank,
            world_size=place.world_size,
            timeout=_COLLECTIVE_TIMEOUT,
        )
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    yield device


def train(
    spec: TrialSpec,
    place: Place,
    *,
    on_ready: Callable[[], None],
    on_step: Callable[[RankStep], None],
    config: dict[str, object] | None = None,
) -> None:
    """Train the trial's steps on this rank; calls `on_step` after each.

    `config` replaces the DeepSpeed configuration made from the layout. Exceptions of the training
    pass through, after the memory limit is lifted.
    """
    layout, model, cluster = spec.layout, spec.model, spec.cluster
    source = _token_source(spec)
    with process_group(place, cluster.device.kind) as device:
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
                own_clipping=True,
            )
        probe = DeviceProbe(device)
        memory = CudaPeakMemory() if device.type == "cuda" else CpuPeakMemory()
        replica = mesh.topology.get_coord(place.rank).data
        with memory_limit(cluster.memory_gib, device):
            engine = build_engine(build, mesh, config, spec.precision)
            _synchronise(device)
            on_ready()
            for step in range(spec.steps):
                tokens, targets = batch_slice(
                    source,
                    step,
                    global_batch_size=model.global_batch_size,
                    sequence_length=model.sequence_length,
                    replica=replica,
                    replicas=layout.data_parallel,
                )
                # Not timed: a training run loads the next batch while a step computes.
                batch = tokens.to(device), targets.to(device)
                started = time.perf_counter()
                result = engine.step(batch)
                _synchronise(device)
                seconds = time.perf_counter() - started
                on_step(
                    RankStep(
                        rank=place.rank,
                        step=step,
                        step_seconds=seconds,
                        loss=result.loss,
                        grad_norm=result.grad_norm,
                        peak_memory_gib=memory.in_use(),
                        peak_reserved_gib=memory.reserved(),
                        probe_seconds=probe.seconds(),
                    )
                )


def _synchronise(device: torch.device) -> None:
    """Wait until the GPU has finished its queue; a no-op on CPUs."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _token_source(spec: TrialSpec) -> TokenSource:
    if spec.synthetic_data:
        return SyntheticTokens(spec.model.vocab_size, spec.seed)
    return TextTokens(text_files(spec.data))
