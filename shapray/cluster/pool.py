"""Workers as the stages see them: tasks in, results and failures out."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Protocol

from shapray.cluster.attempt import Trouble
from shapray.credentials import without_credentials

logger = logging.getLogger(__name__)


class Task(Protocol):
    @property
    def cost(self) -> float: ...


@dataclass(frozen=True)
class Failure:
    """A task that was set aside."""

    task: Any
    message: str  # one line
    traceback: str
    is_job_error: bool  # an input of the user's is wrong


@dataclass
class Counts:
    """How far a stage is."""

    n_done: int = 0
    n_failed: int = 0  # for good
    n_retried: int = 0  # attempts that failed or whose worker died
    n_workers: int = 0  # that are set up
    said: str = ""  # how far a worker is with a task that takes long


def ignore(counts: Counts) -> None:
    """For who does not want to know."""


class Worker(Protocol):
    """What does tasks: one method a stage, called with a task."""

    say: Callable[[str], None]
    """Set by who holds the worker; called during a task that takes long, with how far it is."""


class Pool(Protocol):
    """Workers that do tasks."""

    on_ray: bool  # or in this process

    @property
    def description(self) -> str: ...

    def run(
        self,
        method: str,
        tasks: Iterable[Task],
        on_receipt: Callable[[Any], None],
        on_change: Callable[[Counts], None] = ignore,
    ) -> list[Failure]:
        """Do all tasks, the most costly first.

        Args:
            method: of the worker, called with one task; in messages the stage's name.
            tasks: their string tells them apart in messages.
            on_receipt: gets each result as it comes.
            on_change: called after every few results, and now and then while there are none.
        Returns:
            the tasks that were set aside.
        Raises:
            StorageError: the run directory cannot be written.
            JobError, ClusterError: a worker cannot be made.
            ClusterError: workers die again and again.
        """

    def close(self) -> None: ...


def costly_first(tasks: Iterable[Task]) -> list[Task]:
    return sorted(tasks, key=attrgetter("cost"), reverse=True)  # equal ones keep their order


def set_aside(stage: str, task: Any, trouble: Trouble) -> Failure:
    if trouble.kind != "job":  # that is for the user, who gets it in the command's one message
        message = without_credentials(trouble.message)
        logger.warning("%s: %s failed for good: %s", stage, task, message)
    return Failure(task, trouble.message, trouble.traceback, trouble.kind == "job")
