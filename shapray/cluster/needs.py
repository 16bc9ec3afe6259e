"""What a worker takes and what a node has room for; knows no Ray."""

import math
import os
from collections.abc import Mapping, Sequence

import torch

from shapray.config import Cluster
from shapray.errors import JobError

Resources = Mapping[str, float]

_KEYS = {"CPU": "cluster.cpus_per_worker", "GPU": "cluster.gpus_per_worker"}


def worker_needs(cluster: Cluster, has_gpu: bool, where: str) -> tuple[str, Resources]:
    """The device of each worker and the resources it takes.

    Args:
        cluster: the job's section.
        has_gpu: whether there is one where the workers will be.
        where: that is, for the message.
    Raises:
        JobError: a GPU was asked for, and there is none or no worker is given one.
    """
    gpus = cluster.gpus_per_worker
    if gpus == "auto":
        gpus = 1 if has_gpu and cluster.device != "cpu" else 0
    if cluster.device == "cuda" and not gpus:
        if cluster.gpus_per_worker == "auto":
            raise JobError(
                f"cluster.device: cuda, and {where} has no GPU; use cpu or auto (a cluster that "
                "grows is asked for nodes with some by a number at cluster.gpus_per_worker)"
            )
        raise JobError(
            "cluster.gpus_per_worker: 0, and cluster.device: cuda needs 1, or a part of one"
        )
    device = "cuda" if gpus and cluster.device != "cpu" else "cpu"
    return device, {"CPU": float(cluster.cpus_per_worker), "GPU": float(gpus)}


def workers_here(cluster: Cluster) -> int:
    """How many workers this machine holds."""
    _, needs = worker_needs(cluster, torch.cuda.is_available(), "this machine")
    there = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    return n_fitting(there, needs)


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


def lacking(nodes: Sequence[Resources], needs: Resources) -> list[str]:
    """The job's keys that ask for more than any node has; all, if no node has it all at once."""
    most = {key: max((node.get(key, 0) for node in nodes), default=0) for key in needs}
    return [_KEYS[key] for key in needs if needs[key] > most[key]] or list(_KEYS.values())


def in_words(amounts: Resources) -> str:
    """For messages: ``2 CPU, 0.5 GPU``."""
    return ", ".join(f"{amounts.get(key, 0):g} {key}" for key in ("CPU", "GPU"))
