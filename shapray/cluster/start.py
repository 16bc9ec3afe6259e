"""Workers started and stopped: on Ray, or in this process."""

import contextlib
from collections.abc import Callable
from typing import Any

from shapray.cluster.local_pool import LocalPool
from shapray.cluster.pool import Pool
from shapray.config import Cluster


def open_pool(
    make: Callable[[str], Any], cluster: Cluster, in_process: bool
) -> contextlib.AbstractContextManager[Pool]:
    """Workers for the time of a block.

    Args:
        make: device -> worker.
        in_process: no Ray; see `LocalPool`. Otherwise see `on_ray`.
    Raises:
        JobError: no cluster at ``RAY_ADDRESS``, or it cannot hold a worker.
        ClusterError: Ray cannot start on this machine.
    """
    if in_process:
        return contextlib.nullcontext(LocalPool(make, cluster))
    # Ray takes seconds to import, and who computes in this process needs none.
    from shapray.cluster.connect import on_ray  # noqa: PLC0415

    return on_ray(make, cluster)
