"""What is left to do: which shards of a run are there and sound."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
from rich.console import Console

from shapray.driver.plan import Plan
from shapray.storage.shards import UnsoundShard, list_shards, read_shard, shard_path
from shapray.worker.tasks import ScoreTask

READERS = 16  # shards read at once: most of the time is waiting for the storage


def missing_tasks(plan: Plan, tasks: list[ScoreTask], console: Console) -> list[ScoreTask]:
    """The tasks whose shard is not there or not sound, in their order; says which are unsound.

    Raises:
        StorageError: the run directory cannot be read.
    """
    listed = list_shards(plan.setup.store)
    there = [task for task in tasks if shard_path(task.group, task.first, task.last) in listed]
    if not there:
        return tasks
    read = shard_reader(plan)

    def unsound(task: ScoreTask) -> str | None:
        try:
            read(task)
        except UnsoundShard as error:
            return str(error)
        return None

    with ThreadPoolExecutor(READERS) as threads:
        reasons = dict(zip(there, threads.map(unsound, there)))
    for task, reason in reasons.items():
        if reason is not None:
            path = shard_path(task.group, task.first, task.last)
            console.print(f"score: {path} is computed again: {reason}")
    sound = {task for task, reason in reasons.items() if reason is None}
    console.print(f"score: {len(sound)} of {len(tasks)} shards are there already")
    return [task for task in tasks if task not in sound]


def shard_reader(plan: Plan) -> Callable[[ScoreTask], pa.Table]:
    """Reads the shard of a task after checking it in full; raises UnsoundShard."""
    n_units = {group.name: group.n_units for group in plan.setup.groups}
    ids, store = plan.setup.calibration.ids, plan.setup.store

    def read(task: ScoreTask) -> pa.Table:
        wanted = ids[task.first : task.last]
        return read_shard(
            store,
            task.group,
            n_units[task.group],
            task.first,
            wanted,
            task.fingerprint,
            str(task.price),
        )

    return read
