"""A worker in a process of its own: what an actor of `RayPool` is."""

import pickle
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

from shapray.cluster.attempt import Trouble, attempt


class Host:
    """Holds one worker.

    It is made in a call of its own, from bytes, so that whatever goes wrong there, the import of
    a module included, reaches the driver in words.
    """

    def prepare(self, pickled: Any, device: str, say: Callable[[str], None]) -> Trouble | str:
        """Make the worker.

        Args:
            pickled: a buffer that holds device -> worker.
            say: hears how far it is with a task.
        Returns:
            the name of the machine.
        """
        made = attempt(lambda: pickle.loads(pickled)(device))
        if isinstance(made, Trouble):
            return made
        self.worker = made
        self.worker.say = say
        return platform.node()

    def call(self, method: str, tasks: Sequence[Any]) -> tuple[list[Any], float]:
        """Results and how long they took; those after the first trouble are not there."""
        start, results = time.monotonic(), []
        for task in tasks:
            results.append(attempt(getattr(self.worker, method), task))
            if isinstance(results[-1], Trouble):
                break
        return results, time.monotonic() - start
