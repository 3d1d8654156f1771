"""The Ray Tune loop: runs each layout as a Tune trial. All state of the search is in the ledger.

Tune schedules the trials and their placement groups; its hooks are connected to the ledger's
methods. Tune's experiment state is not used, because a crash can corrupt it; the run directory is
always consistent.
"""

import logging
import os

from ray import tune

from autotune.errors import TemporaryFilesFailed, first_line
from autotune.ledger.ledger import Ledger
from autotune.on_ray.adapter import ATTEMPTS, Adapter
from autotune.on_ray.head_watch import run_while_head_answers
from autotune.on_ray.layout_trial import LayoutTrial
from autotune.on_ray.ray_internals import tune_without_state
from autotune.on_ray.temporary_folder import temporary_folder
from autotune.on_ray.tune_hooks import LedgerSearcher, LedgerStopper, Recorder
from autotune.trial.trainable import Trainable

# Turn Tune's own logs off: they take time, and write into the working directory.
_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def run_trials(
    ledger: Ledger,
    trainable: Trainable,
    *,
    virtual: bool = False,
    wait_for_nodes_seconds: float = 300.0,
) -> None:
    """Run the ledger's trials on the connected Ray until none is left.

    On a `virtual` cluster trials are simulated. Raises NodeCheckFailed where a node fails the
    check, NodesGone where lost nodes are not back after `wait_for_nodes_seconds`,
    RunDirectoryFailed, TemporaryFilesFailed, HeadGone, and KeyboardInterrupt.
    """
    os.environ.update(_TUNE_ENVIRONMENT)
    # The adapter receives failed attempts; Tune would also print their tracebacks.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    adapter = Adapter(ledger, virtual=virtual, wait_for_nodes_seconds=wait_for_nodes_seconds)
    with temporary_folder() as folder, tune_without_state():

        def loop() -> None:
            try:
                _tuner(adapter, trainable, str(folder)).fit()
            except (ConnectionError, TimeoutError):
                raise  # of Ray, not of a file
            except OSError as error:
                # Tune makes a folder per trial, and a file for the error of each failed attempt.
                raise TemporaryFilesFailed(
                    f"temporary files cannot be written any more: {first_line(error)}"
                ) from None
            if adapter.failure is not None:
                raise adapter.failure

        run_while_head_answers(loop, stop=adapter.stop)


def _tuner(adapter: Adapter, trainable: Trainable, folder: str) -> tune.Tuner:
    with_worker = tune.with_parameters(LayoutTrial, worker=trainable)
    with_worker.__qualname__ = LayoutTrial.__name__  # else the dashboard shows "_Inner"
    return tune.Tuner(
        with_worker,
        tune_config=tune.TuneConfig(
            search_alg=LedgerSearcher(adapter),
            num_samples=-1,
            max_concurrent_trials=1,  # every layout uses the whole cluster
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            storage_path=folder,
            verbose=0,
            stop=LedgerStopper(adapter),
            callbacks=[Recorder(adapter)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=ATTEMPTS - 1),
        ),
    )
