"""The one boundary where an exception in a rank becomes an outcome. Logs are never searched."""

import dataclasses

import torch
import torch.distributed as dist

from autotune.trial.trial import Outcome

# Messages of plain RuntimeErrors: torch has no type of its own for these.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc", "_STATUS_ALLOC_FAILED")
# For want of memory where a limit is in force: a thread's stack and a library's pages count, and
# an interpreter that cannot even make its MemoryError says the last.
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
    """Why a rank ended."""

    outcome: Outcome
    reason: str
    """One sentence that starts with the type of the exception."""
    consequence: bool
    """True where another rank's end caused it: that one names the outcome."""


def classify(error: BaseException, *, memory_limited: bool) -> Failure:
    """Type a failure from its exception; `memory_limited`: the trial has a limit."""
    message = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {message}"[:_LONGEST_REASON]
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return Failure(outcome=Outcome.OOM, reason=reason, consequence=False)
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        # NCCL and the store only fail because a peer did, or its memory was short.
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
