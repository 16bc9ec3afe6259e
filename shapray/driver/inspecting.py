"""Images looked at before anything is made of them: those that a run takes, and no others."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from shapray.driver.crew import Crew
from shapray.driver.failures import nothing_failed
from shapray.driver.plan import Plan, check_exact
from shapray.driver.prices import taken_by_now
from shapray.driver.tasks import inspect_tasks
from shapray.inputs.images import check_disjoint
from shapray.worker.tasks import InspectTask


def inspected(crew: Crew, planned: Plan, *, evaluation: bool = True) -> np.ndarray:
    """Every calibration image that the run has taken so far read once, and all that measure
    something if they are to be.

    Returns:
        the active units of the calibration images, (n_images, n_groups).
    Raises:
        JobError: one cannot be read, or values that are to be exact cannot be.
    """
    setup = planned.setup
    n_taken = taken_by_now(setup.job, setup.store, len(setup.calibration))
    tasks = inspect_tasks("calibration", n_taken)
    if evaluation:
        tasks += inspect_tasks("evaluation", len(setup.evaluation))
        if setup.held_back is not None and n_taken < len(setup.calibration):
            tasks += inspect_tasks("held_back", len(setup.held_back))
    return _inspected(crew, planned, tasks, range(n_taken))


def inspected_further(crew: Crew, planned: Plan, first: int, last: int) -> np.ndarray:
    """The same of calibration images that are taken now, from `first` up to `last`.

    Raises:
        JobError: one of them is an evaluation image, too; see `inspected`.
    """
    check_disjoint(planned.setup.calibration.first(last), planned.setup.evaluation)
    tasks = inspect_tasks("calibration", last, first)
    return _inspected(crew, planned, tasks, range(first, last))


def _inspected(
    crew: Crew, planned: Plan, tasks: Sequence[InspectTask], places: range
) -> np.ndarray:
    """Active units of the calibration images at `places`: (n_images, n_groups)."""
    n_active = np.zeros((len(places), len(planned.setup.groups)), np.int32)

    def receive(inspection: Any) -> None:
        task = inspection.task
        if task.images == "calibration":
            here = slice(task.first - places.start, task.last - places.start)
            n_active[here] = inspection.n_active

    nothing_failed("inspect", crew.do("inspect", tasks, receive))
    check_exact(planned, n_active, places)
    return n_active
