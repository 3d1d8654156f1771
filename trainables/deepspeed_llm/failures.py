"""Maps an exception in a rank to a trial outcome, by type and message. Logs are not searched."""

import dataclasses

import torch
import torch.distributed as dist

from autotune.trial.trial import Outcome

# Messages of out-of-memory errors that torch raises as a plain RuntimeError.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc", "_STATUS_ALLOC_FAILED")
# Further out-of-memory messages under a memory limit. Thread stacks and library pages count towards
# it. The last two come from an interpreter that has no memory left to create its MemoryError.
_OUT_OF_LIMITED_MEMORY = (
    "can't start new thread",
    "Resource temporarily unavailable",
    "failed to map segment",
    "without exception set",
    "without setting an exception",
)
_PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
_LONGEST_REASON = 600


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a rank failed."""

    outcome: Outcome
    reason: str
    """One sentence that starts with the type of the exception."""
    consequence: bool
    """True if another rank's failure caused it: that rank's failure determines the outcome."""


def classify(error: BaseException, *, memory_limited: bool) -> Failure:
    """Classify an exception; `memory_limited`: the trial runs under a memory limit."""
    message = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {message}"[:_LONGEST_REASON]
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return Failure(outcome=Outcome.OOM, reason=reason, consequence=False)
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        # NCCL and the store fail because a peer failed, or because memory ran out.
        is_memory = any(sign in message for sign in _OUT_OF_MEMORY)
        outcome = Outcome.OOM if is_memory else Outcome.CRASHED
        return Failure(outcome=outcome, reason=reason, consequence=not is_memory)
    if isinstance(error, RuntimeError | OSError | ImportError | SystemError):
        signs = (*_OUT_OF_MEMORY, *_OUT_OF_LIMITED_MEMORY) if memory_limited else _OUT_OF_MEMORY
        if any(sign in message for sign in signs):
            return Failure(outcome=Outcome.OOM, reason=reason, consequence=False)
        if any(sign in message for sign in _PEER_GONE):
            return Failure(outcome=Outcome.CRASHED, reason=reason, consequence=True)
    return Failure(outcome=Outcome.CRASHED, reason=reason, consequence=False)
