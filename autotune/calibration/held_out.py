"""Hold-out constants: for each recorded sweep, constants that were not fitted on it."""

from pathlib import Path

from autotune.calibration.fit import fit
from autotune.calibration.recorded_runs import Sweep, read_sweeps
from autotune.cost.constants import Constants
from autotune.cost.trainers import constants_for
from autotune.errors import InputError
from autotune.inputs import shown

FITTED_ON = (
    "13B_2k_32_sp",
    "13B_2k_64_all",
    "13B_8k_128_all",
    "30B_2k_256_all",
    "30B_2k_64_sp",
    "65B_2k_128_all",
)
"""The sweeps that the constants of the hardware file a100-80gb were fitted on."""


def held_out_constants(sweeps: list[Sweep], path: Path) -> dict[str, Constants]:
    """For each sweep the constants to judge it with, fitted without that sweep.

    A sweep in `FITTED_ON` gets a new fit to the other sweeps of that list, which must be in the
    same folder. Any other sweep gets the shipped constants. Raises InputError where no sweep is
    left to fit to.
    """
    folder = path if path.is_dir() else path.parent
    fitted = [sweep for sweep in sweeps if sweep.name in FITTED_ON]
    in_folder = {sweep.name: sweep for sweep in (read_sweeps(folder) if fitted else [])}
    constants: dict[str, Constants] = {}
    for sweep in sweeps:
        if sweep.name not in FITTED_ON:
            constants[sweep.name] = constants_for(
                sweep.cluster.device, sweep.trainer, sweep.cluster.network
            )
            continue
        others = [in_folder[name] for name in FITTED_ON if name in in_folder and name != sweep.name]
        if not others:
            raise InputError(
                f"the shipped constants were fitted on sweep {sweep.name}: to judge it, "
                f"put other sweeps of that fit into the same folder, got none in {shown(folder)}",
                field="runs",
            )
        constants[sweep.name] = fit(others)
    return constants
