"""What workers on Ray say of the tasks that they are at."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.queue import Queue


class News:
    """A way from all workers to the driver, beside that of their results.

    Nothing depends on it: where it breaks, nobody is heard any more, and the work goes on.

    Attributes:
        coming: the next message, in a list to wait for; empty where the way is broken.
    """

    def __init__(self) -> None:
        self.queue = Queue(actor_options={"num_cpus": 0})
        self.coming = [self._next()]
        self.said: dict[int, str] = {}

    def voice(self, number: int) -> Callable[[str], None]:
        """What a worker of this number says it by."""
        return functools.partial(_say, self.queue, number)

    def hear(self, done: Sequence[Any]) -> None:
        """Take in what is among these references."""
        if not any(reference in done for reference in self.coming):
            return
        [reference], self.coming = self.coming, []
        with contextlib.suppress(RayError):
            number, text = ray.get(reference)
            self.said[number] = text
            self.coming = [self._next()]

    def latest(self, numbers: Iterable[int]) -> str:
        """What the first of these workers says that says anything."""
        return next((self.said[number] for number in numbers if number in self.said), "")

    def forget(self, number: int) -> None:
        """It has done what it spoke of."""
        self.said.pop(number, None)

    def _next(self) -> Any:
        actor: Any = self.queue.actor
        return actor.get.remote()

    def close(self) -> None:
        self.queue.shutdown(force=True)


def _say(queue: Queue, number: int, text: str) -> None:
    with contextlib.suppress(RayError):
        queue.put_nowait((number, text))
