"""Times a fixed matrix product on this rank's device, to detect a slow device (straggler).

Step times cannot show which device is slow, because the ranks of a step wait for each other. This
product runs without communication, so healthy devices of the same model need the same time.
"""

import time

import torch

_SIZE = {"cuda": 2048, "cpu": 192}
# On a GPU one product takes microseconds; a measurement needs about a millisecond.
_PRODUCTS = {"cuda": 40, "cpu": 2}


class DeviceProbe:
    """Times the fixed product. Its matrices are allocated once, before memory is measured."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        size = _SIZE[device.type]
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        # Random values, for the power draw of training: ones would need much less. A generator of
        # its own, so that the probe does not change the trial's random state.
        generator = torch.Generator(device).manual_seed(0)
        self._factor = torch.randn(size, size, device=device, dtype=dtype, generator=generator)
        self._product = torch.empty_like(self._factor)
        self.seconds()  # warm-up: the first call also selects the kernel

    def seconds(self) -> float:
        """Wall time of the fixed number of products."""
        started = time.perf_counter()
        for _ in range(_PRODUCTS[self._device.type]):
            torch.mm(self._factor, self._factor, out=self._product)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - started
