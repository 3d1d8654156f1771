"""The steps of a training on one rank, from its first step or a checkpoint to the last."""

import math
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch.distributed as dist

from autotune.errors import InputError, first_line
from autotune.inputs import shown
from autotune.options.command_line import print_error
from autotune.trial.measurement import utilisation
from autotune.trial.trial import Ended, Outcome, TrialSpec
from trainables.deepspeed_llm.data import batch_slice
from trainables.deepspeed_llm.engine import Batch
from trainables.deepspeed_llm.failures import classify
from trainables.deepspeed_llm.garbage import collected_between_steps
from trainables.deepspeed_llm.rank import Worker, process_group, worker
from trainables.deepspeed_llm.tokens import Samples
from trainables.deepspeed_llm.torchrun import LaunchedRank
from trainables.deepspeed_llm.training import checkpoints
from trainables.deepspeed_llm.training.metrics import metrics_file
from trainables.deepspeed_llm.training.plan import Inputs, Plan


class Training:
    """This rank's part of a training. Its `Work`, as torchrun's ranks do it."""

    def __init__(self, spec: TrialSpec, plan: Plan, inputs: Inputs, rank: LaunchedRank) -> None:
        self._spec, self._plan, self._inputs, self._rank = spec, plan, inputs, rank
        self._losses: list[float] = []
        self._seconds: list[float] = []
        self._peak_memory_gib: float | None = None

    def run(self) -> None:
        plan, place = self._plan, self._rank.place
        with (
            process_group(place, self._spec.cluster.device.kind) as device,
            worker(
                self._spec, place, device, config=plan.config, weight_decay=plan.weight_decay
            ) as ready,
        ):
            self._rank.start_watchdog(self)
            self._resume(ready)
            file = plan.metrics if place.rank == 0 else None
            with (
                metrics_file(file, self._inputs.first_step) as write,
                collected_between_steps() as collect,
            ):
                for line in self._steps(ready):
                    if place.rank == 0:
                        self._rank.print(line)
                    write(line)
                    done = line["step"] + 1
                    if plan.checkpoints is not None and plan.is_due(plan.save_every, done):
                        self._save(ready, done)
                    collect()
            peaks: list[Any] = [None] * place.world_size
            dist.all_gather_object(peaks, ready.memory.in_use())
            self._peak_memory_gib = max(peaks)

    def summary(self, ended: Ended) -> dict[str, Any]:
        """Also says on stderr why the training failed."""
        if ended.outcome is not Outcome.OK:
            out_of_memory = ended.outcome is Outcome.OOM
            print_error(f"out of memory: {ended.reason}" if out_of_memory else ended.reason)
        return {
            "summary": True,
            "outcome": ended.outcome,
            "reason": ended.reason,
            "losses": self._losses,
            "step_seconds": statistics.median(self._seconds) if self._seconds else None,
            "peak_memory_gib": self._peak_memory_gib,
            "mfu": self._mfu(),
        }

    def _steps(self, ready: Worker) -> Iterator[dict[str, Any]]:
        """Train; yields the figures of each step."""
        model, plan = self._spec.model, self._plan
        batches = self._ahead(ready.replica)
        for step in range(self._inputs.first_step, plan.schedule.steps):
            # With what a step waits for: reading its batch, where that takes longer than a step.
            started = time.perf_counter()
            batch = ready.to_device(next(batches))
            learning_rate = plan.schedule.learning_rate(step)
            ready.engine.set_learning_rate(learning_rate)
            result = ready.step(batch)
            seconds = time.perf_counter() - started
            if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
                # Before the weights, which are spoilt now, get into a checkpoint.
                raise FloatingPointError(
                    f"step {step} has a loss of {result.loss} and a gradient norm of "
                    f"{result.grad_norm}"
                )
            self._losses.append(result.loss)
            self._seconds.append(seconds)
            line = {
                "step": step,
                "loss": result.loss,
                "grad_norm": result.grad_norm,
                "learning_rate": learning_rate,
                "step_seconds": seconds,
                "tokens_per_second": model.tokens_per_step / seconds,
                "tokens": (step + 1) * model.tokens_per_step,
            }
            samples = self._inputs.validation
            if samples is not None and plan.is_due(plan.validate_every, step + 1):
                line["validation_loss"] = self._validation_loss(ready, samples)
            yield line

    def _ahead(self, replica: int) -> Iterator[Batch]:
        """The batches of all steps; the next one is read while a step computes."""
        first, samples = self._inputs.first_step, self._inputs.samples
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self._batch, samples, replica, first)
            for following in range(first + 1, self._plan.schedule.steps):
                current = coming
                coming = reader.submit(self._batch, samples, replica, following)
                yield current.result()
            yield coming.result()

    def _batch(self, samples: Samples, replica: int, step: int) -> Batch:
        return batch_slice(
            samples,
            step,
            global_batch_size=self._spec.model.global_batch_size,
            replica=replica,
            replicas=self._spec.layout.data_parallel,
        )

    def _validation_loss(self, ready: Worker, samples: Samples) -> float:
        losses = [
            ready.engine.evaluate(ready.to_device(self._batch(samples, ready.replica, index)))
            for index in range(self._plan.validation_batches)
        ]
        return statistics.fmean(losses)

    def _resume(self, ready: Worker) -> None:
        directory, step = self._plan.resume_from, self._inputs.first_step
        if directory is None:
            return
        tag = checkpoints.tag_of(step)
        try:
            state = ready.engine.load(directory, tag)
            if state["step"] != step:
                raise ValueError(f"it is of step {state['step']}")
        except Exception as error:
            failure = classify(error, memory_limited=self._spec.cluster.memory_gib is not None)
            if failure.outcome is Outcome.OOM or failure.consequence:
                raise
            raise InputError(
                f"--resume-from: cannot read {shown(directory / tag)}: {first_line(error)}"
            ) from error

    def _save(self, ready: Worker, step: int) -> None:
        directory, place = self._plan.checkpoints, self._rank.place
        assert directory is not None
        if place.rank == 0:
            checkpoints.begin(directory, step)
        dist.barrier()
        state = {"step": step, "tokens": step * self._spec.model.tokens_per_step}
        ready.engine.save(directory, checkpoints.tag_of(step), state)
        if place.local_rank == 0:
            checkpoints.flush(directory, step)
        dist.barrier()
        if place.rank == 0:
            checkpoints.complete(directory, step, self._spec, keep=self._plan.keep_checkpoints)

    def _mfu(self) -> float | None:
        if not self._seconds:
            return None
        spec = self._spec
        rate = spec.model.tokens_per_step / statistics.median(self._seconds)
        flops = spec.model.model_flops_per_token
        return utilisation(spec.cluster, spec.precision, flops, rate / spec.layout.world_size)
