"""Which precision the tails run in: measured on the device, not looked up by its name."""

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn

from shapray.engine.network_game import NetworkGame, NetworkSplit
from shapray.network.group import Group

MUCH_FASTER = 0.8  # of the time in float32, for bfloat16 to be chosen
TIMINGS = 5


def seconds_of_two_batches(game: NetworkGame) -> float:
    """Time of two batches of coalitions: the processor's on the CPU, else the clock's."""
    clock = time.process_time if game.device.type == "cpu" else time.perf_counter
    coalitions = torch.ones(2 * game.rows, game.n_players, dtype=torch.bool)
    images = torch.zeros(len(coalitions), dtype=torch.int64)
    start = clock()
    game.outputs(images, coalitions).sum().item()  # waits for the device
    return clock() - start


def choose_precision(
    folded: nn.Module,
    groups: Sequence[Group],
    example: Tensor,
    device: str | torch.device,
    memory: int,
    seconds: Callable[[NetworkGame], float] = seconds_of_two_batches,
) -> str:
    """Measure the first group's tail, which is the longest, and a middle one's in both precisions.

    Args:
        folded, example, device, memory: as of `NetworkSplit`.
        groups: those to score, at least one, in the network's order.
        seconds: time that a game's coalitions take; the best of `TIMINGS` counts.
    Returns:
        "bfloat16" if that is much faster, else "float32"; "float32" too where tracing failed, as
        the whole network is run then.
    """
    if not isinstance(folded, fx.GraphModule):
        return "float32"
    games = {
        precision: [
            NetworkSplit(
                folded, group, example, precision=precision, device=device, memory=memory
            ).game(example, None, "neg_kl_divergence")
            for group in (groups[0], groups[len(groups) // 2])
        ]
        for precision in ("float32", "bfloat16")
    }
    best = dict.fromkeys(games, math.inf)
    for _ in range(TIMINGS):  # by turns: a slow moment hits both
        for precision, pair in games.items():
            best[precision] = min(best[precision], sum(map(seconds, pair)))
    return "bfloat16" if best["bfloat16"] < MUCH_FASTER * best["float32"] else "float32"
