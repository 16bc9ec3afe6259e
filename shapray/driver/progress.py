"""How far a stage is: a bar on a terminal and in a notebook, else a plain line now and then."""

import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from shapray.cluster.pool import Counts
from shapray.text import duration

LINE_SECONDS = 5.0


class Meter:
    """Counts what is done of one stage and shows the rate and the time left.

    Args:
        console: where to.
        stage: name shown in front.
        n_tasks: of the stage.
        of: what they are called.
        cost: of all tasks; the time left goes by the cost done, as tasks are not equal.
    """

    def __init__(
        self, console: Console, stage: str, n_tasks: int, cost: float, of: str = "tasks"
    ) -> None:
        self.console, self.stage, self.of = console, stage, of
        self.n_tasks, self.total = n_tasks, cost
        self.n_done, self.done = 0, 0.0
        self.start = self.shown = time.monotonic()
        self.bar: Progress | None = None
        if _can_change_what_it_shows(console):
            self.bar = Progress(
                TextColumn("{task.description:<10}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=console,
                transient=True,
            )
            self.row = self.bar.add_task(stage, total=self.n_tasks, note="")

    def advance(self, cost: float) -> None:
        self.n_done, self.done = self.n_done + 1, self.done + cost

    def show(self, counts: Counts | None = None) -> None:
        """counts: None where no workers do it."""
        if self.bar is not None:
            self.bar.update(self.row, completed=self.n_done, note=self._note(counts))
        elif self.n_done < self.n_tasks and time.monotonic() - self.shown > LINE_SECONDS:
            self.shown = time.monotonic()
            note = self._note(counts)
            self.console.print(f"{self.stage}: {self.n_done}/{self.n_tasks} {self.of}, {note}")

    @property
    def tasks_per_second(self) -> float:
        return self.n_done / max(time.monotonic() - self.start, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """None before anything is done."""
        if not self.done:
            return None
        return (time.monotonic() - self.start) * (self.total - self.done) / self.done

    def _note(self, counts: Counts | None) -> str:
        parts = [] if counts is None else ["workers are starting"]
        if counts and counts.n_workers:
            workers = f"{counts.n_workers} worker{'s' * (counts.n_workers > 1)}"
            parts = [workers, f"{self.tasks_per_second:.3g} tasks/s"]
        if counts and counts.n_failed:
            parts.insert(0, f"{counts.n_failed} failed")
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        if counts and counts.said:
            parts.append(counts.said)
        return ", ".join(parts)


def _can_change_what_it_shows(console: Console) -> bool:
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal and not console.is_dumb_terminal


@contextmanager
def meter(console: Console, stage: str, n_tasks: int, cost: float) -> Iterator[Meter]:
    """A meter for the tasks of a stage; says at the end how long they took."""
    shown = Meter(console, stage, n_tasks, cost)
    with shown.bar or nullcontext():
        yield shown
    seconds = time.monotonic() - shown.start
    console.print(f"{stage}: {shown.n_done}/{shown.n_tasks} tasks in {duration(seconds)}")


@contextmanager
def group_meter(console: Console, n_groups: int) -> Iterator[Callable[[int, int], None]]:
    """A meter for the groups of a plan, to be told how many are done and how many there are; what
    takes no time leaves no line."""
    shown = Meter(console, "plan", n_groups, n_groups, "groups")

    def progress(n_done: int, _: int) -> None:
        shown.n_done, shown.done = n_done, n_done
        shown.show()

    with shown.bar or nullcontext():
        yield progress
