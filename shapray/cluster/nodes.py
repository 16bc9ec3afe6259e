"""A Ray cluster: joining it, and what it has room for, now and, if it grows, later."""

import json
import logging
import math
import os
import time
from collections.abc import Mapping

import ray
import torch
from ray.experimental.internal_kv import _internal_kv_get

from shapray.config import Cluster
from shapray.errors import JobError

# Where both generations of Ray's autoscaler leave their traces; Ray has no public question for it.
_STATUS = b"__autoscaling_status"
_SECOND_GENERATION = (b"__autoscaler_v2_enabled", b"__autoscaler")
STATUS_SECONDS = 6.0  # after which an autoscaler has written one

Resources = Mapping[str, float]


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


def n_fitting(node: Resources, needs: Resources) -> int:
    """How many workers an otherwise empty node holds.

    A part of a GPU never spans two GPUs.
    """
    rooms = []
    for key, need in needs.items():
        if 0 < need < 1:
            rooms.append(int(node.get(key, 0)) * math.floor(1 / need + 1e-9))
        elif need:
            rooms.append(int(node.get(key, 0) // need))
    return min(rooms)


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


def in_words(amounts: Resources) -> str:
    """For messages: ``2 CPU, 0.5 GPU``."""
    return ", ".join(f"{amounts.get(key, 0):g} {key}" for key in ("CPU", "GPU"))


def workers_here(cluster: Cluster) -> int:
    """How many workers this machine holds."""
    n_workers = (os.cpu_count() or 1) // cluster.cpus_per_worker
    gpus = cluster.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if torch.cuda.is_available() and cluster.device != "cpu" else 0.0
    return min(n_workers, int(torch.cuda.device_count() / gpus)) if gpus else n_workers
