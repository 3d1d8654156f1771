"""Attention kernels that come with packages of their own: are they there, and do they load?"""

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

    A package that was built for another torch or another GPU is found and yet does not load, so it
    is loaded, in a process of its own.
    """
    module = MODULES[kernel]
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return "is not installed"
    command = [sys.executable, "-c", f"from {module} import flash_attn_func"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"cannot be imported within {_IMPORT_SECONDS} s"
    if tried.returncode == 0:
        return None
    said = tried.stderr.strip().splitlines() or [f"exit status {tried.returncode}"]
    return f"cannot be imported ({said[-1]})"
