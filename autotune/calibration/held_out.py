"""Constants of the cost model for recorded sweeps that they were not fitted on."""

from pathlib import Path

from autotune.calibration.fit import fit
from autotune.calibration.recorded_runs import Sweep, read_sweeps
from autotune.cost.constants import Constants, constants_for
from autotune.errors import InputError

FITTED_ON = (
    "13B_2k_32_sp",
    "13B_2k_64_all",
    "13B_8k_128_all",
    "30B_2k_256_all",
    "30B_2k_64_sp",
    "65B_2k_128_all",
)
"""The sweeps that the constants of the hardware file a100-80gb were fitted on."""


def unseen_constants(sweeps: list[Sweep], path: Path) -> dict[str, Constants]:
    """For each sweep constants that know nothing of it.

    A sweep that the shipped constants were fitted on is left out of a new fit to the others of
    those sweeps, which must lie in the same folder. Any other has the shipped constants. Raises
    InputError where there is nothing to fit to.
    """
    folder = path if path.is_dir() else path.parent
    fitted = [sweep for sweep in sweeps if sweep.name in FITTED_ON]
    beside = {sweep.name: sweep for sweep in (read_sweeps(folder) if fitted else [])}
    found: dict[str, Constants] = {}
    for sweep in sweeps:
        if sweep.name not in FITTED_ON:
            found[sweep.name] = constants_for(
                sweep.cluster.device, sweep.trainer, sweep.cluster.network
            )
            continue
        others = [beside[name] for name in FITTED_ON if name in beside and name != sweep.name]
        if not others:
            raise InputError(
                f"the shipped constants were fitted on sweep {sweep.name}: to judge it, "
                f"keep the other sweeps beside it, got only it in {str(folder)!r}",
                field="runs",
            )
        found[sweep.name] = fit(others)
    return found
