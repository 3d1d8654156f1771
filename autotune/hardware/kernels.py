"""Checks whether attention kernels of optional packages are installed and can be imported."""

import importlib.util
import subprocess
import sys
from typing import Literal

InstalledKernel = Literal["flash_attn", "flash_attn_4"]

MODULES: dict[InstalledKernel, str] = {
    "flash_attn": "flash_attn",
    "flash_attn_4": "flash_attn.cute",
}
"""The module that has the kernel's `flash_attn_func`."""

_IMPORT_SECONDS = 120


def why_not_installed(kernel: InstalledKernel) -> str | None:
    """Why the kernel cannot be used here, in one line; None where it can.

    A package built for another torch or GPU is installed and yet cannot be imported. So it is
    imported, in a separate process.
    """
    module = MODULES[kernel]
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return "is not installed"
    command = [sys.executable, "-c", f"from {module} import flash_attn_func"]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"cannot be imported within {_IMPORT_SECONDS} s"
    if completed.returncode == 0:
        return None
    errors = completed.stderr.strip().splitlines() or [f"exit status {completed.returncode}"]
    return f"cannot be imported ({errors[-1]})"
