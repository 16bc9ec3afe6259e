"""Workers started and stopped: on Ray, or in this process."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import ray

from shapray.cluster.local_pool import LocalPool
from shapray.cluster.nodes import connect
from shapray.cluster.pool import Pool
from shapray.cluster.ray_pool import RayPool
from shapray.config import Cluster


@contextlib.contextmanager
def open_pool(make: Callable[[str], Any], cluster: Cluster, in_process: bool) -> Iterator[Pool]:
    """Workers, stopped at the end.

    Joins the Ray cluster this process belongs to (``RAY_ADDRESS``, set by ``ray job submit``), or
    starts one on this machine and stops it again.

    Args:
        make: device -> worker.
        in_process: no Ray; see `LocalPool`.
    Raises:
        JobError: no cluster at ``RAY_ADDRESS``, or it cannot hold a worker.
    """
    if in_process:
        yield LocalPool(make, cluster)
        return
    joined_before = ray.is_initialized()
    if not joined_before:
        connect()
    pool = None
    try:
        pool = RayPool(make, cluster)
        yield pool
    finally:
        if pool is not None and joined_before:
            pool.close()  # otherwise they end with the connection
        if not joined_before:
            ray.shutdown()
