"""Which precision the tails run in: measured on the device, not looked up by its name."""

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, fx, nn

from shapray.engine.network_game import NetworkGame, NetworkSplit
from shapray.network.group import Group
from shapray.shapley.estimators import Sampling, Settings, estimate

MUCH_FASTER = 0.8  # of the time in float32, for a lower precision to be chosen
NEAR = 0.1  # standard errors that its values may be off by
MEASURED = Settings()  # the sampling whose standard errors these are
TIMINGS = 5
LOWER = {"cpu": ("bfloat16",), "cuda": ("tf32", "bfloat16")}

Games = list[NetworkGame]


def seconds_of_two_batches(game: NetworkGame) -> float:
    """Time of two batches of coalitions: the processor's on the CPU, else the clock's."""
    clock = time.process_time if game.device.type == "cpu" else time.perf_counter
    coalitions = torch.ones(2 * game.rows, game.n_players, dtype=torch.bool)
    images = torch.zeros(len(coalitions), dtype=torch.int64)
    start = clock()
    game.outputs(images, coalitions).sum().item()  # waits for the device
    return clock() - start


def standard_errors_off(low: NetworkGame, exact: NetworkGame) -> float:
    """Root mean square over units and images of what a lower precision changes in the Shapley
    values, over that of their standard errors, the same coalitions drawn.

    It is as much of a score: rounding differs from image to image as the sampling does, so that
    a mean over images has less of both alike.
    """
    seeds = range(len(exact.active))
    found, right = (estimate(game, MEASURED, seeds) for game in (low, exact))
    gaps = np.array([f.shapley_value - r.shapley_value for f, r in zip(found, right, strict=True)])
    if not gaps.any():
        return 0.0
    errors = np.array([r.standard_error for r in right])
    return float(np.sqrt(np.square(gaps).sum() / np.square(errors).sum()))


def choose_precision(
    folded: nn.Module,
    groups: Sequence[Group],
    example: Tensor,
    device: str | torch.device,
    memory: int,
    seconds: Callable[[NetworkGame], float] = seconds_of_two_batches,
    off: Callable[[NetworkGame, NetworkGame], float] = standard_errors_off,
    *,
    sampling: Sampling = MEASURED,
) -> str:
    """Measure the first group's tail, which is the longest, and a middle one's in each precision.

    Args:
        folded, example, device, memory: as of `NetworkSplit`.
        groups: those to score, at least one, in the network's order.
        seconds: time that a game's coalitions take; the best of `TIMINGS` counts.
        off: how far a game's values are from those of the same in float32, in standard errors of
            `MEASURED`.
        sampling: of the job. More permutations have smaller standard errors, and values may be
            off by less. "auto" counts as `MEASURED`: it comes to more only where the sampling's
            error would not be small beside the images', and that one hides the rounding.
    Returns:
        the fastest that is much faster than float32 and near it, else "float32"; "float32" too
        where tracing failed, as the whole network is run then, and where all values are to be
        exact.
    """
    if not isinstance(folded, fx.GraphModule) or sampling.estimator == "exact":
        return "float32"
    near = NEAR
    if isinstance(sampling.permutations, int):
        near /= math.sqrt(max(1.0, sampling.permutations / MEASURED.permutations))
    # turned over, an image is another one to the network
    few = torch.cat([example, example.flip(2), example.flip(3), example.flip(2, 3)])
    games: dict[str, Games] = {
        precision: [
            NetworkSplit(
                folded, group, example, precision=precision, device=device, memory=memory
            ).game(few, None, "neg_kl_divergence")
            for group in (groups[0], groups[len(groups) // 2])
        ]
        for precision in ("float32", *LOWER[torch.device(device).type])
    }
    best = dict.fromkeys(games, math.inf)
    for _ in range(TIMINGS):  # by turns: a slow moment hits all
        for precision, pair in games.items():
            best[precision] = min(best[precision], sum(map(seconds, pair)))
    exact = games.pop("float32")
    for precision in sorted(games, key=best.__getitem__):
        if best[precision] >= MUCH_FASTER * best["float32"]:
            break
        if all(off(*pair) <= near for pair in zip(games[precision], exact, strict=True)):
            return precision
    return "float32"
