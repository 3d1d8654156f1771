"""How fast this rank's device is by itself.

The ranks of a step wait for each other, so their step times say nothing of a slow device among
them. A fixed matrix product that waits for nobody does: healthy devices of a kind need the same
time for it.
"""

import time

import torch

_SIZE = {"cuda": 2048, "cpu": 192}
# A product is a matter of microseconds on a GPU, where a measurement needs about a millisecond.
_PRODUCTS = {"cuda": 40, "cpu": 2}


class DeviceProbe:
    """Times the fixed product; its matrices are made once, before memory is counted."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        size = _SIZE[device.type]
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        # Chance, as in training: ones would hardly draw power. The trial's own is left alone.
        chance = torch.Generator(device).manual_seed(0)
        self._factor = torch.randn(size, size, device=device, dtype=dtype, generator=chance)
        self._product = torch.empty_like(self._factor)
        self.seconds()  # the first one also chooses the kernel

    def seconds(self) -> float:
        """Wall time of the products."""
        started = time.perf_counter()
        for _ in range(_PRODUCTS[self._device.type]):
            torch.mm(self._factor, self._factor, out=self._product)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - started
