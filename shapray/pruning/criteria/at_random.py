"""No criterion at all: what the others have to beat."""

import hashlib

import numpy as np

from shapray.pruning.criteria.inputs import Inputs


def at_random(inputs: Inputs) -> dict[str, np.ndarray]:
    """Uniform on [0, 1), drawn from the seed and the group's name: the other groups do not
    matter."""
    return {group.name: draw(inputs.seed, group.name, group.n_units) for group in inputs.groups}


def draw(seed: int, group: str, n_units: int) -> np.ndarray:
    """(n_units,) float64."""
    key = int.from_bytes(hashlib.sha256(f"random\0{seed}\0{group}".encode()).digest()[:16])
    return np.random.Generator(np.random.Philox(key=key)).random(n_units)
