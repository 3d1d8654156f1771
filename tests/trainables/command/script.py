"""A training script for tests: it trains nothing, sleeps, reports steps and fails on command.

Usage: script.py BEHAVIOUR MICRO_BATCH_SIZE
"""

import os
import signal
import subprocess
import sys
import time

from autotune.report import step

FAILS_AT = 8
"""At this micro-batch size it runs out of memory."""


def main(behaviour: str, micro_batch_size: int) -> None:
    """Report ten steps, unless told to do something else."""
    rank = int(os.environ["RANK"])
    print(f"rank {rank}: {behaviour}", flush=True)
    if micro_batch_size == FAILS_AT:
        raise MemoryError("no memory for this micro-batch")
    match behaviour:
        case "silent":
            print("trained without a word")
            return
        case "flood":
            for _ in range(300_000):
                print("x" * 100)
        case "ignores SIGTERM":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "forks away":
            subprocess.Popen(["sleep", "1000"], start_new_session=True)
        case "bad report":
            with open(os.environ["AUTOTUNE_STEPS"], "a") as steps:
                steps.write('{"step_time": 1}\n')
            time.sleep(100)
        case "exits with 7":
            print("something is wrong", flush=True)
            sys.exit(7)
    for number in range(10):
        if behaviour == "hangs" and number == 2:
            time.sleep(1000)
        if behaviour == "is killed" and number == 1:
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1000)
        time.sleep(0.02)
        if rank == 0 or behaviour == "all report":
            loss = float("nan") if behaviour == "NaN" else 5 - number / 10
            step(step_seconds=0.02, loss=loss, peak_memory_gib=0.5)
            print(f"iteration {number} | elapsed ms: 20.0 | loss: {loss}", flush=True)
    time.sleep(1000)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
