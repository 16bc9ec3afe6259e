"""A Ray cluster: joining it, and what it has room for, now and, if it grows, later."""

import json
import logging
import os
import time

import ray
from ray.experimental.internal_kv import _internal_kv_get

from shapray.cluster.needs import Resources, n_fitting
from shapray.errors import JobError

# Where both generations of Ray's autoscaler leave their traces; Ray has no public question for it.
_STATUS = b"__autoscaling_status"
_SECOND_GENERATION = (b"__autoscaler_v2_enabled", b"__autoscaler")
STATUS_SECONDS = 6.0  # after which an autoscaler has written one


def connect() -> None:
    """Join the cluster that ``RAY_ADDRESS`` names, or start one on this machine.

    Raises:
        JobError: no cluster answers there.
    """
    address = os.environ.get("RAY_ADDRESS") or "local"
    try:
        if address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # Not shown: what workers print; their errors come back with the tasks.
            ray.init(
                address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
            )
        else:
            ray.init(address, logging_level=logging.WARNING)
    except Exception as error:  # an address, a port, a token: Ray raises many kinds
        raise JobError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}); unset it to compute on "
            "this machine"
            if address != "local"
            else f"Ray cannot start on this machine: {error}"
        ) from error


def nodes() -> list[Resources]:
    """The resources of every node that is alive, used or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def capacity(needs: Resources) -> int:
    """How many workers the cluster holds now."""
    return sum(n_fitting(node, needs) for node in nodes())


def autoscales() -> bool:
    """Whether an autoscaler adds nodes to the cluster when something waits for one.

    Every cluster has one, but where none was asked for it only mirrors the nodes there are, each
    as a type of its own, named after the node.
    """
    key, namespace = _SECOND_GENERATION
    if _internal_kv_get(key, namespace=namespace) == b"1":
        return True
    until = time.monotonic() + STATUS_SECONDS
    while True:
        status = json.loads(_internal_kv_get(_STATUS) or b"{}")
        types = status.get("autoscaler_report", {}).get("node_type_mapping")
        if types or time.monotonic() > until:
            return any(name != f"node_{node}" for node, name in (types or {}).items())
        time.sleep(0.2)
