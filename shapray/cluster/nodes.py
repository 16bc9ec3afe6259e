"""What a Ray cluster has room for, now and, if it grows, later."""

import ray

from shapray.cluster.needs import Resources, n_fitting

_GROUP = "ray.io/node-group"  # a label that Ray itself gives


def nodes() -> list[Resources]:
    """The resources of every node that is alive, used or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def capacity(needs: Resources) -> int:
    """How many workers the cluster holds now."""
    return sum(n_fitting(node, needs) for node in nodes())


def seems_to_grow() -> bool:
    """Whether the cluster's nodes come in groups, as those do that KubeRay or ``ray up`` starts.

    Such a cluster usually adds nodes when something waits for one. Ray has no public question for
    that, and before 2.50 no such label, so this is a guess: `cluster.grows` is the last word.
    """
    return any(_GROUP in node.get("Labels", {}) for node in ray.nodes() if node["Alive"])
