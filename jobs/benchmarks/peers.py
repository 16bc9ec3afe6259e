"""The other ways to estimate Shapley values of units, each in its best batched use.

All of them evaluate the same folded, channels-last tail in inference mode as this package does, at
the same precision, on one thread; nothing before the group's consumers is ever recomputed, and
Captum and shapiq have the product of coalitions and contributions in place of the consumers too.

*Shared-permutation loop*: the algorithm of Ancona et al. 2020, as in TorchPruner. All images share
their permutations; units leave one by one, and every step is one forward of the tail over all
images as one batch. What it is spared here: the product with a mask (one channel of its own copy of
the consumer's input is zeroed per step), value(all) and value(none) (taken as known), and any
synchronisation or softmax within the loop (values are computed from all logits at the end).

*Captum*, `ShapleyValueSampling`: the features are the units, the input a row of ones, the baseline
a row of zeros, the forward function this package's way from coalitions to values. One call per
image, because a call shares its permutations among its inputs; `perturbations_per_eval` is the
number of units, the most it takes, so a permutation is one forward. A permutation costs one
evaluation per unit, one more than needed, which is not counted against it.

*shapiq*, `PermutationSamplingSV`, `KernelSHAP` and `SVARM`: one approximator per image on a game
that maps boolean coalitions to values in the same way; all permutations in one batch. The last
two with the pairing trick, which helps both of them here. The budget is what as many permutations
cost this package, value(all) and value(none) included. (Of shapiq's others, tried on
five groups at 8 permutations' worth: `kADDSHAP` and `ProxySPEX` were level with `KernelSHAP` or
behind it; `UnbiasedKernelSHAP`, `StratifiedSamplingSV` and `OwenSamplingSV` far behind.)

Captum and shapiq are given the image's active units only, which they would not know by themselves.

Sources: Ancona et al. 2020, Shapley Value as Principled Metric for Structured Network Pruning;
Castro et al. 2009 (permutations); Lundberg and Lee 2017 (KernelSHAP); Kolpaczki et al. 2024
(SVARM).
"""

from collections.abc import Callable
from typing import Any

import captum.attr
import numpy as np
import shapiq.approximator
import torch
from torch import Tensor

from jobs.benchmarks.networks import ready_inputs, ready_tail
from shapray.engine.network_game import NetworkGame, NetworkSplit
from shapray.shapley.estimators import n_sampled
from shapray.shapley.game import Game

Values = Callable[[Tensor], Tensor]  # (n_rows, n_players) bool -> (n_rows,) float64
Peer = Callable[[Values, int, int, int], np.ndarray]
"""(values, n_players >= 2, permutations that set the budget, seed) -> (n_players,) float64"""


class SharedLoop:
    """Permutations shared by all images of a game, one forward of the tail per step."""

    def __init__(self, split: NetworkSplit, game: NetworkGame) -> None:
        assert split.parts is not None
        self.game, self.tail, self.n_images = game, ready_tail(split), len(game.active)
        self.every = torch.arange(self.n_images)
        self.n_sides = len(game.low_sides)
        self.inputs = ready_inputs(split, game, self.every)
        self.channels = [
            [(units.flatten() == unit).nonzero()[:, 0] for unit in range(game.n_players)]
            for units in split.parts.masks
        ]
        self.channel_dims = [1 if units.dim() == 3 else -1 for units in split.parts.masks]

    @torch.inference_mode()
    def contributions(self, order: np.ndarray) -> Tensor:
        """Marginal contributions of all units along one permutation, the first to leave first.

        Returns:
            (n_images, n_units) float64, in unit order.
        """
        inputs = self.inputs[: self.n_sides] + [x.clone() for x in self.inputs[self.n_sides :]]
        outputs = [self.game.reference[:, 1]]
        for unit in order[:-1]:
            for x, dim, channels in zip(
                inputs[self.n_sides :], self.channel_dims, self.channels, strict=True
            ):
                x.index_fill_(dim, channels[unit], 0.0)
            outputs.append(self.tail(*inputs))
        outputs.append(self.game.reference[:, 0])
        rows = self.every.repeat(len(outputs))
        values = self.game.value(rows, torch.cat(outputs).double()).view(len(outputs), -1)
        found = torch.empty(self.n_images, self.game.n_players, dtype=torch.float64)
        found[:, torch.from_numpy(order)] = -values.diff(dim=0).T
        return found


def coalition_values(game: Game, image: int, players: Tensor) -> Values:
    """One image's game on some players, the others absent."""

    def values(coalitions: Tensor) -> Tensor:
        kept = torch.zeros(len(coalitions), game.n_players, dtype=torch.bool)
        kept[:, players] = coalitions
        images = torch.full((len(coalitions),), image)
        return game.value(images, game.outputs(images, kept).double())

    return values


def captum_sampling(values: Values, n_players: int, permutations: int, seed: int) -> np.ndarray:
    """Captum's ShapleyValueSampling."""
    torch.manual_seed(seed)
    method = captum.attr.ShapleyValueSampling(lambda mask: values(mask > 0.5))
    found = method.attribute(
        torch.ones(1, n_players, dtype=torch.float64),
        baselines=torch.zeros(1, n_players, dtype=torch.float64),
        n_samples=permutations,
        perturbations_per_eval=n_players,
    )
    return found[0].double().numpy()


def shapiq_permutation(values: Values, n_players: int, permutations: int, seed: int) -> np.ndarray:
    """shapiq's PermutationSamplingSV."""
    method = shapiq.approximator.PermutationSamplingSV(n_players, random_state=seed)
    return _approximate(method, values, permutations, batch_size=permutations)


def shapiq_kernelshap(values: Values, n_players: int, permutations: int, seed: int) -> np.ndarray:
    """shapiq's KernelSHAP with paired coalitions."""
    method = shapiq.approximator.KernelSHAP(n_players, pairing_trick=True, random_state=seed)
    return _approximate(method, values, permutations)


def shapiq_svarm(values: Values, n_players: int, permutations: int, seed: int) -> np.ndarray:
    """shapiq's SVARM with paired coalitions."""
    method = shapiq.approximator.SVARM(n_players, pairing_trick=True, random_state=seed)
    return _approximate(method, values, permutations)


PEERS: dict[str, Peer] = {
    "Captum ShapleyValueSampling": captum_sampling,
    "shapiq permutation": shapiq_permutation,
    "shapiq KernelSHAP, paired": shapiq_kernelshap,
    "shapiq SVARM, paired": shapiq_svarm,
}
SLOW = {"shapiq SVARM, paired"}  # milliseconds of Python per evaluation; never near the best


def _approximate(method: Any, values: Values, permutations: int, **options: int) -> np.ndarray:
    def game(coalitions: np.ndarray) -> np.ndarray:
        return values(torch.from_numpy(np.atleast_2d(coalitions))).numpy()

    found = method.approximate(n_sampled(method.n, permutations), game, **options)
    return np.array([found[(player,)] for player in range(method.n)])


def peer_estimates(
    peer: Peer, game: Game, n_images: int, permutations: int, seeds: list[int]
) -> tuple[np.ndarray, float]:
    """A peer on the first images of a game.

    Returns:
        (n_images, n_units) float64, null players 0; and evaluations per image.
    """
    found = np.zeros((n_images, game.n_players))
    evaluations = 0
    for image in range(n_images):
        players = game.active[image].nonzero()[:, 0]
        values = coalition_values(game, image, players)

        def counted(coalitions: Tensor, values: Values = values) -> Tensor:
            nonlocal evaluations
            evaluations += len(coalitions)
            return values(coalitions)

        if len(players) == 1:
            found[image, players] = counted(torch.tensor([[False], [True]])).diff().numpy()
        elif len(players):
            seed = seeds[image] % 2**32
            found[image, players] = peer(counted, len(players), permutations, seed)
    return found, evaluations / n_images
