"""Coalitions per second against the plain forward of the same tail; memory; bfloat16.

    python -m jobs.benchmarks.throughput --readme         # about 5 minutes on one quiet core

Run from the repository's folder; `--networks`, `--groups`, `--rounds` and `--what` shorten it.

*pairs*: `outputs`, the coalitions drawn for some images for the price of 8 permutations. *subsets*:
`subset_values`, all coalitions of one image. Both against as many rows of a plain forward: the same
tail in the same precision, no product with a mask, its inputs ready in memory and in their final
layout, the same batch used again and again; in batches of as many rows as ours has, and in the
batch size that is fastest for it, whichever is faster (where this package keeps float32 although
bfloat16 was asked for, in the faster precision too). They take turns in one process; what is
reported is the median over the turns of the ratio of times.

*memory*: peak resident size of a fresh process that loads everything a worker loads and scores a
task of 16 images, against `cluster.memory_per_worker`. *precision*: scores in bfloat16 minus those
in float32 from the same permutations, over the standard error of the scores, a unit at a time.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from jobs.benchmarks import tables
from jobs.benchmarks.networks import (
    NETWORKS,
    Network,
    load,
    machine,
    ready_inputs,
    ready_tail,
    selected,
)
from jobs.benchmarks.plots import plot_throughput
from jobs.benchmarks.results import RESULTS, Row, fill, merge, read
from shapray.config import Score
from shapray.engine.network_game import NetworkGame, NetworkSplit
from shapray.network.group import Group
from shapray.shapley.estimators import estimate
from shapray.shapley.pairs import Pairs

PATH = RESULTS / "throughput.parquet"
KEYS = ("what", "network", "group", "precision")
PRECISIONS = ("float32", "bfloat16")
PERMUTATIONS = 8
BATCHES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
TRIAL_SECONDS = 0.15  # per batch size, to find the best one
ROUND_SECONDS = 0.4  # of plain forwards, per turn; decides how many images take part
SUBSET_PLAYERS = 16
SUBSET_GROUPS = {"resnet20": ("layer1.2.conv1",), "digits": ("conv3",)}
KINDS = ("memory", "pairs", "subsets", "precision")


class PlainForward:
    """The tail on inputs that are ready in memory."""

    def __init__(self, split: NetworkSplit, game: NetworkGame, precision: str) -> None:
        self.split, self.game = split, game
        # a split may keep float32 where bfloat16 was asked for; the plain forward may do either
        self.tails = {split.dtype: ready_tail(split)}
        dtype = getattr(torch, precision)
        if dtype != split.dtype:
            self.tails[dtype] = ready_tail(split).to(dtype)

    def batch(self, n_rows: int, dtype: torch.dtype) -> list[Tensor]:
        index = torch.arange(n_rows) % len(self.game.active)
        return [part.to(dtype) for part in ready_inputs(self.split, self.game, index)]

    @torch.inference_mode()
    def run(self, batch: list[Tensor], n_rows: int) -> None:
        """As many rows as asked for, the last batch a part."""
        tail, size = self.tails[batch[0].dtype], len(batch[0])
        for start in range(0, n_rows, size):
            used = min(size, n_rows - start)
            tail(*(part[:used] for part in batch))

    def best_batch(self) -> list[Tensor]:
        """Of all sizes and precisions the batch with most rows per second."""
        best, fastest = None, 0.0
        for dtype in self.tails:
            for size in BATCHES:
                batch = self.batch(size, dtype)
                self.run(batch, size)
                rows, start = 0, time.process_time()
                while rows == 0 or time.process_time() - start < TRIAL_SECONDS:
                    self.run(batch, size)
                    rows += size
                spent = time.process_time() - start
                if rows / spent > fastest:
                    best, fastest = batch, rows / spent
                if rows == size and spent > 2 * TRIAL_SECONDS:
                    break  # larger ones only take longer
        assert best is not None
        return best


def seconds_of(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def turns(
    ours: Callable[[], object], n_rows: int, plain: PlainForward, rounds: int, rows_per_batch: int
) -> Row:
    """Ours and the plain forward, half of it before and half behind, in turns."""
    best = plain.best_batch()
    batches = [best]
    if len(best[0]) != rows_per_batch:
        batches.append(plain.batch(rows_per_batch, best[0].dtype))
    half = n_rows // 2
    own, others = [], []
    for _ in range(rounds):
        before = [seconds_of(partial(plain.run, batch, half)) for batch in batches]
        own.append(seconds_of(ours))
        behind = [seconds_of(partial(plain.run, batch, n_rows - half)) for batch in batches]
        others.append(min(map(sum, zip(before, behind))))
    return {
        "n_rows": n_rows,
        "rows_per_second": n_rows / float(np.median(own)),
        "plain_rows_per_second": n_rows / float(np.median(others)),
        "rows_per_batch": rows_per_batch,
        "best_batch": len(best[0]),
        "best_dtype": str(best[0].dtype),
        "rounds": rounds,
        "ratio": float(np.median(np.array(others) / np.array(own))),
    }


def pairs(network: Network, group: Group, precision: str, rounds: int) -> Row:
    split = network.split(group, precision)
    game = network.game(split)
    plain = PlainForward(split, game, precision)
    n_images = len(game.active)
    probe = plain.batch(split.rows, split.dtype)
    plain.run(probe, split.rows)
    per_row = seconds_of(lambda: plain.run(probe, split.rows)) / split.rows
    rows_per_image = PERMUTATIONS * (group.n_units - 1)
    n_images = max(2, min(n_images, round(ROUND_SECONDS / per_row / rows_per_image)))
    ends = torch.zeros(len(game.active), 2, dtype=torch.float64)
    drawn = Pairs(game, range(n_images), PERMUTATIONS, list(range(len(game.active))), ends)
    images, coalitions = next(drawn.batches())
    game.outputs(images, coalitions)
    return turns(lambda: game.outputs(images, coalitions), len(images), plain, rounds, game.rows)


def subsets(network: Network, group: Group) -> Row:
    """All coalitions of the units, null players included, so that there are 2**16."""
    split = network.split(group)
    game = network.game(split)
    players = torch.arange(group.n_units)
    game.subset_values(0, players[:8])
    return turns(
        lambda: game.subset_values(0, players),
        2**group.n_units,
        PlainForward(split, game, "float32"),
        1,
        game.rows,
    )


def precision_difference(network: Network, group: Group) -> Row:
    score = Score(estimator="permutation", permutations=PERMUTATIONS)
    found = {}
    for precision in PRECISIONS:
        game = network.game(network.split(group, precision))
        found[precision] = estimate(game, score, network.seeds(0, group))
    means = {
        precision: np.mean([e.shapley_value for e in estimates], axis=0)
        for precision, estimates in found.items()
    }
    errors = np.stack([e.standard_error for e in found["float32"]])
    standard_error = np.sqrt((errors**2).sum(0)) / len(errors)
    sampled = standard_error > 0
    gaps = means["bfloat16"] - means["float32"]
    difference = np.abs(gaps)[sampled] / standard_error[sampled]
    rms = float(np.sqrt((gaps**2).sum() / (standard_error**2).sum()))
    return {
        "n_images": len(errors),
        "median_difference": float(np.median(difference)),
        "rms_difference": rms,
        "max_difference": float(difference.max()),
    }


def peak_memory(network: Network, group: Group, bound: int) -> Row:
    """Score a task in a fresh process, see `jobs.benchmarks.memory`."""
    command = [sys.executable, "-m", "jobs.benchmarks.memory", network.name, group.name, str(bound)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {"bound": bound, **json.loads(out.splitlines()[-1])}


def save(what: str, network: Network, group: Group, precision: str, row: Row) -> None:
    key = {"what": what, "network": network.name, "group": group.name, "precision": precision}
    merge(PATH, [{**key, **row}], KEYS)
    print({**key, **row}, flush=True)


def measure(options: argparse.Namespace) -> None:
    for what in [kind for kind in KINDS if kind in options.what]:
        for name in options.networks:
            network = load(name, options.images)
            for group in selected(network, options.groups):
                if what == "memory":
                    row = peak_memory(network, group, options.memory)
                    save(what, network, group, "float32", row)
                elif what == "precision":
                    save(what, network, group, "bfloat16", precision_difference(network, group))
                elif what == "pairs":
                    for precision in options.precisions:
                        row = pairs(network, group, precision, options.rounds)
                        save(what, network, group, precision, row)
                elif group.name in (options.subset_groups or SUBSET_GROUPS[name]):
                    assert group.n_units <= SUBSET_PLAYERS, f"{group.name} has too many units"
                    save(what, network, group, "float32", subsets(network, group))


def main() -> None:
    parser = argparse.ArgumentParser(description="Coalitions per second, memory, bfloat16.")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--groups", nargs="+", default=["*"], help="glob patterns")
    parser.add_argument("--what", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=64, help="of every network")
    parser.add_argument("--subset-groups", nargs="+", help="default: one of each network")
    parser.add_argument("--memory", type=int, default=2**30, help="bound in bytes")
    parser.add_argument("--tables", action="store_true", help="only print tables of what is there")
    parser.add_argument("--readme", action="store_true", help="put the tables into README.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.tables:
        print(machine(), flush=True)
        measure(options)
        plot_throughput(read(PATH), RESULTS)
    text = tables.throughput(PATH)
    print(text)
    if options.readme:
        fill("throughput", text)


if __name__ == "__main__":
    main()
