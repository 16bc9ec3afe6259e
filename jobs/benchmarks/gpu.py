"""What a GPU makes of the engine: one JSON file, in ten minutes at most, on any GPU.

    python -m jobs.benchmarks.gpu --out gpu.json
    python -m jobs.benchmarks.gpu --out gpu.json --device cpu --quick     # a try without a GPU

Run from the repository's folder. For some groups of ResNet-20 and ResNet-56 (CIFAR-10, trained) and
of ResNet-50 (224 px, random weights), in float32, TensorFloat-32 and bfloat16:

- coalitions per second of `outputs`, of coalitions drawn for the price of 8 permutations; of the
  plain forward of the same tail in the same precision, its inputs ready in memory and all units
  kept, at the batch and in the layout that are best for it; of a whole `estimate`;
- scores minus those in float32 from the same coalitions, over their standard errors (root mean
  squares over the units);
- how often the device is waited for in a round of coalitions, and in an estimate;
- the most memory that an estimate takes, and the precision that `auto` chooses.

What takes too long is left out and named under `left_out`; the file is written again after every
group, so that it holds whatever there was time for.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from jobs.benchmarks.networks import (
    CIFAR_TRANSFORM,
    VALUE,
    cifar_images,
    cifar_model,
    machine,
    ready_inputs,
    ready_tail,
)
from jobs.benchmarks.results import RESULTS
from shapray.config import Score
from shapray.engine.arithmetic import float32_products
from shapray.engine.network_game import NetworkGame, NetworkSplit
from shapray.engine.precision import choose_precision
from shapray.engine.trace import fold
from shapray.inputs.images import open_images
from shapray.inputs.model import build_model
from shapray.network.find import find_groups
from shapray.network.group import Group
from shapray.shapley.estimators import Estimate, estimate
from shapray.shapley.pairs import Pairs

PRECISIONS = ("float32", "tf32", "bfloat16")
PERMUTATIONS = 8
SCORING = Score(estimator="permutation", permutations=PERMUTATIONS)
GROUPS = {
    "resnet20": ("conv1", "layer1.0.conv1", "layer2.1.conv1", "layer3.2.conv1"),
    "resnet56": ("layer1.0.conv1", "layer2.4.conv1", "layer3.7.conv1"),
    "resnet50": ("layer1.0.conv2", "layer2.1.conv2", "layer4.1.conv2"),
}
QUICK_GROUPS = {"resnet20": ("layer3.2.conv1",), "resnet50": ("layer4.2.conv2",)}
N_IMAGES = {"resnet20": 64, "resnet56": 64, "resnet50": 8}
BATCHES = {"resnet20": (256, 1024, 4096), "resnet56": (256, 1024, 4096), "resnet50": (16, 48, 128)}
MEMORY = 2**31  # cluster.memory_per_worker, unless told otherwise
SECONDS = 0.25  # of each timing


@dataclass(frozen=True)
class Network:
    """A network on the device, its images and groups."""

    name: str
    folded: nn.Module
    images: Tensor
    labels: Tensor
    groups: dict[str, Group]

    def game(self, group: Group, precision: str) -> NetworkGame:
        split = NetworkSplit(
            self.folded,
            group,
            self.images[:1],
            precision=precision,
            device=self.images.device,
            memory=MEMORY,
        )
        return split.game(self.images, self.labels, VALUE)


def load(name: str, device: str, *, quick: bool) -> Network:
    n = 2 if quick else N_IMAGES[name]
    if name == "resnet50":
        torch.manual_seed(0)
        model = torchvision.models.resnet50(weights=None, num_classes=10).eval()
        for block in model.modules():
            if isinstance(block, torchvision.models.resnet.Bottleneck):
                nn.init.constant_(block.bn3.weight, 0.25)  # nothing grows from block to block
        size = 64 if quick else 224
        images, labels = torch.randn(n, 3, size, size), torch.arange(n) % 10
    else:
        model = build_model(cifar_model(name))
        found = open_images(cifar_images("calibration", n), CIFAR_TRANSFORM, name)
        images = found.load(0, len(found))
        assert found.labels is not None
        labels = found.labels
    groups = {g.name: g for g in find_groups(model, images[:1]) if g.reason is None}
    folded = fold(model, images[:1]).to(device)
    return Network(name, folded, images.to(device), labels.to(device), groups)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], object], device: torch.device, at_least: float) -> float:
    """Of one run, the mean of as many as take some time, after one that counts for nothing."""
    run()
    synchronize(device)
    n, start = 0, time.perf_counter()
    while n == 0 or time.perf_counter() - start < at_least:
        run()
        synchronize(device)
        n += 1
    return (time.perf_counter() - start) / n


def waits(run: Callable[[], object], device: torch.device) -> int | None:
    """How often the device is waited for, as PyTorch notices; None without a GPU."""
    if device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(w.message) for w in caught)


def plain_forward(
    game: NetworkGame, batches: tuple[int, ...], tf32: bool, at_least: float
) -> dict[str, Any]:
    """Rows per second of the tail by itself, where they are most."""
    best: dict[str, Any] = {"plain_per_second": 0.0}
    tail = ready_tail(game.split)
    for layout in (torch.channels_last, torch.contiguous_format):
        tail.to(memory_format=layout)
        for size in batches:
            index = torch.arange(size, device=game.device) % len(game.active)
            inputs = [
                part.contiguous(memory_format=layout) if part.dim() == 4 else part
                for part in ready_inputs(game.split, game, index)
            ]
            with torch.inference_mode(), float32_products(tf32=tf32):
                spent = seconds_of(lambda: tail(*inputs), game.device, at_least)  # noqa: B023
            if size / spent > best["plain_per_second"]:
                best = {
                    "plain_per_second": size / spent,
                    "plain_batch": size,
                    "plain_layout": str(layout).removeprefix("torch."),
                }
    return best


def measured(
    network: Network, group: Group, precision: str, at_least: float
) -> tuple[dict[str, Any], list[Estimate]]:
    """A group in a precision, and the estimates."""
    game = network.game(group, precision)
    device, n = game.device, len(network.images)
    seeds, ends = list(range(n)), torch.zeros(n, 2, dtype=torch.float64)

    def drawn() -> Pairs:
        return Pairs(game, range(n), PERMUTATIONS, seeds, ends)

    index, coalitions = next(drawn().batches())
    spent = seconds_of(lambda: game.outputs(index, coalitions), device, at_least)
    row: dict[str, Any] = {
        "dtype": str(game.split.dtype).removeprefix("torch."),
        "rows_per_batch": game.rows,
        "coalitions": len(index),
        "coalitions_per_second": len(index) / spent,
    }
    if group.flat:
        row |= plain_forward(game, BATCHES[network.name], precision == "tf32", at_least / 3)
        row["ratio"] = row["coalitions_per_second"] / row["plain_per_second"]
    row["waits_in_an_estimate"] = waits(lambda: estimate(game, SCORING, seeds), device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    found = estimate(game, SCORING, seeds)
    spent = time.perf_counter() - start
    if device.type == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    pairs = drawn()
    row |= {
        "estimate_seconds": spent,
        "estimate_coalitions_per_second": sum(e.n_evaluations for e in found) / spent,
        "waits_in_outputs": waits(lambda: game.outputs(index, coalitions), device),
        "waits_in_a_round": waits(pairs.evaluate, device),
    }
    return row, found


def standard_errors_off(found: list[Estimate], right: list[Estimate]) -> float:
    """Of the scores, which are means over the images."""
    gaps = np.mean([f.shapley_value - r.shapley_value for f, r in zip(found, right)], axis=0)
    errors = np.square([r.standard_error for r in right]).sum(0) / len(right) ** 2
    return float(np.sqrt(np.square(gaps).sum() / errors.sum()))


def of_group(network: Network, group: Group, at_least: float) -> dict[str, Any]:
    rows, estimates = {}, {}
    for precision in PRECISIONS:
        rows[precision], estimates[precision] = measured(network, group, precision, at_least)
        if precision != "float32":
            off = standard_errors_off(estimates[precision], estimates["float32"])
            rows[precision]["standard_errors_off"] = off
    return {"network": network.name, "group": group.name, "n_units": group.n_units, **rows}


def lines(found: dict[str, Any]) -> Iterator[str]:
    """A table to look at."""
    titles = (("ours/s", 12), ("plain/s", 12), ("ratio", 7), ("estimate/s", 12), ("off", 7))
    yield " " * 40 + "".join(f"{title:>{width}}" for title, width in titles)
    for row in found["groups"]:
        for precision in PRECISIONS:
            of = row[precision]
            name = f"{row['network']} {row['group']} {precision}"
            yield (
                f"{name:40}{of['coalitions_per_second']:12,.0f}"
                f"{of.get('plain_per_second', 0):12,.0f}{of.get('ratio', 0):7.2f}"
                f"{of['estimate_coalitions_per_second']:12,.0f}"
                f"{of.get('standard_errors_off', 0):7.3f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="What a GPU makes of the engine.")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="few images, few groups")
    parser.add_argument("--minutes", type=float, default=9.0, help="no group is begun afterwards")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else machine(),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "quick": options.quick,
        "chosen": {},
        "groups": [],
        "left_out": [],
    }

    def write() -> None:
        found["seconds"] = time.perf_counter() - start
        options.out.write_text(json.dumps(found, indent=1) + "\n")

    for name, groups in (QUICK_GROUPS if options.quick else GROUPS).items():
        network = load(name, options.device, quick=options.quick)
        scored = [network.groups[g] for g in groups] if options.quick else network.groups.values()
        for group in groups:
            if time.perf_counter() - start > 60 * options.minutes:
                found["left_out"].append(f"{name} {group}")
                continue
            row = of_group(network, network.groups[group], 0.01 if options.quick else SECONDS)
            found["groups"].append(row)
            print(f"{time.perf_counter() - start:6.1f} s: {name} {group}", flush=True)
            write()
        began = time.perf_counter()
        chosen = choose_precision(
            network.folded, list(scored), network.images[:1], options.device, MEMORY
        )
        found["chosen"][name] = {"precision": chosen, "seconds": time.perf_counter() - began}
        write()
    print("\n".join(lines(found)))
    print({name: of["precision"] for name, of in found["chosen"].items()})


if __name__ == "__main__":
    main()
