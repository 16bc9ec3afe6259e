"""How long something takes, in the seconds that a forecast is made of."""

import time
from collections.abc import Callable

import numpy as np
import torch

REPEATS, REPEAT_SECONDS = 5, 0.3


class Stopwatch:
    """Times work on a device.

    Args:
        device: where the work runs; the number of threads is set before.

    Attributes:
        device: see above.
        now: a clock in seconds: the processor's where there is one thread, as other programs on
            the machine do not add to it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        alone = device.type == "cpu" and torch.get_num_threads() == 1
        self.now: Callable[[], float] = time.process_time if alone else time.perf_counter

    def seconds(self, run: Callable[[], object]) -> float:
        """Median time of a few runs; the one that warms up counts if it took long."""
        found: list[float] = []
        until = time.perf_counter() + REPEAT_SECONDS
        while len(found) < 2 or (len(found) <= REPEATS and time.perf_counter() < until):
            self._wait()
            start = self.now()
            run()
            self._wait()
            found.append(self.now() - start)
            if found[-1] > REPEAT_SECONDS:
                return found[-1]
        return float(np.median(found[1:]))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
