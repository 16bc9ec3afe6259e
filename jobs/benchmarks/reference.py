"""Reference Shapley values for the estimators benchmark, computed once and kept in files.

    python -m jobs.benchmarks.reference --processes 2

Where an image has at most EXACT_PLAYERS active units its values are exact. Elsewhere they come from
plain independent antithetic permutations, without the surrogate, with seeds of their own and at
least 30 times the largest budget of the benchmark; the variance of their mean is kept beside them.
All in float32, by the summed way into the tail.
"""

import argparse
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch

from jobs.benchmarks.networks import NETWORKS, Network, load, selected
from jobs.benchmarks.plain import PlainGame
from shapray.config import Score
from shapray.network.group import Group
from shapray.shapley.estimators import estimate

CACHE = Path("runs/benchmark-references")  # git ignores runs/
SEED = 1_000_003  # estimates have small ones
IMAGES_AT_ONCE = 8
EXACT_PLAYERS = {"resnet20": 12, "digits": 16}
PERMUTATIONS = {"layer[12].*": 480, "layer3.[01].*": 480, "*": 1920}  # 30 x 16, and more


@dataclass(frozen=True)
class Reference:
    """Shapley values of one group: (n_images, n_units) float64 each; variance 0 where exact."""

    values: np.ndarray
    variance: np.ndarray
    n_exact: int

    def error(self, n_images: int) -> float:
        """Own expected relative squared error of the scores averaged over the first images."""
        mean = self.values[:n_images].mean(0)
        return float(self.variance[:n_images].sum() / n_images**2 / (mean**2).sum())


@dataclass(frozen=True)
class _Block:
    network: str
    n_images: int
    group: str
    first: int
    last: int
    permutations: int
    path: Path


def permutations_of(group: Group, fixed: int | None) -> int:
    return fixed or next(n for pattern, n in PERMUTATIONS.items() if fnmatch(group.name, pattern))


def load_reference(
    network: Network, group: Group, cache: Path, permutations: int | None
) -> Reference:
    """The reference of a group; computes what the cache lacks."""
    parts = []
    for block in _blocks(network, group, cache, permutations):
        if not block.path.exists():
            print(f"computing reference {block.path.name}", flush=True)
            _compute(block, network)
        with np.load(block.path) as file:
            parts.append((file["values"], file["variance"], int(file["n_exact"])))
    values, variances, exact = zip(*parts)
    return Reference(np.concatenate(values), np.concatenate(variances), sum(exact))


def _blocks(
    network: Network, group: Group, cache: Path, permutations: int | None
) -> Iterator[_Block]:
    n = permutations_of(group, permutations)
    for first in range(0, len(network.images), IMAGES_AT_ONCE):
        last = min(first + IMAGES_AT_ONCE, len(network.images))
        name = f"{network.name}-{group.name}-{n}-{first}-{last}-{network.digest[:12]}.npz"
        yield _Block(network.name, len(network.images), group.name, first, last, n, cache / name)


def _compute(block: _Block, network: Network) -> None:
    (group,) = selected(network, [block.group])
    images = slice(block.first, block.last)
    game = network.game(network.split(group), block.first, block.last)
    score = Score(permutations=block.permutations, exact_max_players=EXACT_PLAYERS[network.name])
    found = estimate(PlainGame(game), score, network.seeds(SEED, group)[images])
    block.path.parent.mkdir(parents=True, exist_ok=True)
    waiting = block.path.with_suffix(".tmp.npz")
    np.savez(
        waiting,
        values=np.stack([e.shapley_value for e in found]),
        variance=np.stack([e.standard_error**2 for e in found]),
        n_exact=sum(e.estimator == "exact" for e in found),
    )
    waiting.replace(block.path)


def _in_process(block: _Block) -> _Block:
    torch.set_num_threads(1)
    _compute(block, load(block.network, block.n_images))
    return block


def main() -> None:
    parser = argparse.ArgumentParser(description="Compute the references that are still missing.")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--groups", nargs="+", default=["*"])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument(
        "--permutations", type=int, help="instead of a number that depends on the layer"
    )
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    blocks: list[_Block] = []
    for name in options.networks:
        network = load(name, options.images)
        for group in selected(network, options.groups):
            blocks += _blocks(network, group, options.cache, options.permutations)
    missing = [block for block in blocks if not block.path.exists()]
    print(f"{len(missing)} of {len(blocks)} blocks to compute", flush=True)
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for done, block in enumerate(pool.imap_unordered(_in_process, missing), start=1):
            print(f"{done}/{len(missing)} {block.path.name}", flush=True)


if __name__ == "__main__":
    main()
