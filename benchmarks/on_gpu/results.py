"""The results file: saved after each measurement, and continued by the next call."""

import contextlib
import importlib.metadata
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from autotune.errors import InputError

SECTIONS = ("throughput", "side_by_side", "curves", "prediction")
_PACKAGES = ("torch", "triton", "deepspeed", "transformers", "flash-attn", "flash-attn-4", "numpy")
_CLOCKS = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"


class Results:
    """All measurements so far, by section and name. Each one is saved at once."""

    def __init__(self, path: Path, device: str) -> None:
        """Read `path` or create it. Raises InputError if it is of another device or version."""
        self._path = path
        self.content: dict[str, Any] = {
            "device": device,
            "versions": versions(),
            "facts": None,
            "clocks": [],
            **{section: {} for section in SECTIONS},
        }
        if not path.exists():
            return
        try:
            saved = json.loads(path.read_text("utf-8"))
            same = all(saved[key] == self.content[key] for key in ("device", "versions"))
            complete = saved.keys() == self.content.keys()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"results {str(path)!r}: cannot be read: {error!r}") from None
        if not same or not complete:
            raise InputError(
                f"results {str(path)!r} must be from this device and these versions, got "
                f"{saved.get('device')} with {saved.get('versions')}; choose another --out"
            )
        self.content = saved

    def has(self, section: str, name: str) -> bool:
        """Whether it is measured already."""
        return name in self.content[section]

    def add(self, section: str, name: str, value: Any) -> None:
        """Save the result of one item."""
        self.content[section][name] = value
        self.save()

    def put(self, key: str, value: Any) -> None:
        """Save a value that belongs to the whole run."""
        self.content[key] = value
        self.save()

    def note_clocks(self) -> None:
        """Record the GPU's current clocks; null without nvidia-smi."""
        self.content["clocks"].append(clocks())
        self.save()

    def save(self) -> None:
        """Write the file atomically."""
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        temporary.write_text(json.dumps(self.content, indent=1) + "\n", "utf-8")
        os.replace(temporary, self._path)


def versions() -> dict[str, str | None]:
    """Versions of the packages that affect performance; null if not installed."""
    installed: dict[str, str | None] = dict.fromkeys(_PACKAGES)
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def clocks() -> dict[str, str] | None:
    """Name, driver, clocks, power limit and temperature from nvidia-smi; None without it."""
    command = ["nvidia-smi", f"--query-gpu={_CLOCKS}", "--format=csv,noheader"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in line.stdout.splitlines()[0].split(",")]
    return dict(zip(_CLOCKS.split(","), values, strict=True))
