"""What cannot be replaced: by how much the least-squares error grows with each unit that goes.

Units go one after the other, each time the one whose removal costs least after all weights of the
consumers have made up for it; its score is that cost. So two units that say the same are not both
kept: with one gone, the other is dear.

Source: Hassibi, Stork 1993, Optimal Brain Surgeon, here for blocks of weights (all that read a
unit) and the error of the consumers' outputs instead of the loss.
"""

import sys
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, fx, nn

from shapray.engine.network_game import PROCESS_BYTES
from shapray.engine.trace import fold
from shapray.network.group import Channels, Group
from shapray.pruning.criteria.inputs import Inputs
from shapray.pruning.repair.least_squares import IMAGES_AT_ONCE, bias_of, may_have_bias
from shapray.pruning.repair.regression import MAX_ROWS, RIDGE, Regression
from shapray.pruning.repair.sites import Site, find_sites
from shapray.pruning.repair.walk import Walk
from shapray.text import size

SHARE = 0.6  # of the memory, for matrices; the rest is for what the network makes of the images


def obs(inputs: Inputs) -> dict[str, np.ndarray]:
    """The growth of the error when a unit goes, in the order in which units go; see the module."""
    folded = _folded(inputs)
    with torch.inference_mode():
        images = inputs.images[:]
        return {group.name: _scores(inputs, images, folded, group) for group in inputs.groups}


def check_refits(inputs: Inputs) -> None:
    """Raise as `obs` does for a network or a group that it says nothing of."""
    folded = _folded(inputs)
    for group in inputs.groups:
        _sites(inputs, folded, group)


def _folded(inputs: Inputs) -> fx.GraphModule:
    folded = fold(inputs.model, inputs.images[:1])
    if not isinstance(folded, fx.GraphModule):
        raise ValueError("criterion obs: torch.fx cannot trace the network")
    return folded


def _sites(inputs: Inputs, folded: fx.GraphModule, group: Group) -> list[Site]:
    """All that read a group, in the order of the data."""
    consumers = {consumer.module for consumer in group.consumers}
    found, left_out = find_sites(inputs.model, folded, consumers)
    sites = [site for site in found if site.layer in consumers]
    if len(sites) < len(consumers):
        name, reason = next((name, why) for name, why in left_out.items() if name in consumers)
        raise ValueError(f"criterion obs, group {group.name}: {name}: {reason}")
    return sites


def _scores(inputs: Inputs, images: Tensor, folded: fx.GraphModule, group: Group) -> np.ndarray:
    consumers = {consumer.module: consumer for consumer in group.consumers}
    sites = _sites(inputs, folded, group)
    layers = {site.layer: _layer(folded, site) for site in sites}
    _check_memory(inputs, group, {name: layer.weight[0].numel() for name, layer in layers.items()})
    walk = Walk(folded, images, IMAGES_AT_ONCE)
    kept = {name for site in sites for name in (walk.source(site.call), site.call)}
    readers = []
    for site in sites:
        walk.run_to(site.call, keep=kept)
        regression = _regression(inputs.model, layers[site.layer], site, walk)
        readers.append(_Reader(regression, consumers[site.layer], group.n_units))
        del regression  # its sums are as large as all that stays of it
    order, growth = [], []
    alive = torch.ones(group.n_units, dtype=torch.bool)
    while alive.any():
        costs = sum(reader.costs() for reader in readers)
        assert isinstance(costs, Tensor)
        unit = int(costs.masked_fill(~alive.to(costs.device), torch.inf).argmin())
        order.append(unit)
        growth.append(float(costs[unit]))
        alive[unit] = False
        for reader in readers:
            reader.remove(unit)
    scores = np.zeros(group.n_units)
    # No lower than that of a unit that went before, and no two alike: the order is the message.
    rising = np.maximum.accumulate(np.maximum(growth, 0))
    for i in range(1, len(rising)):
        if rising[i] <= rising[i - 1]:
            rising[i] = np.nextafter(rising[i - 1], np.inf)
    scores[order] = rising
    return scores


def _layer(folded: fx.GraphModule, site: Site) -> nn.Conv2d | nn.Linear:
    layer = folded.get_submodule(site.layer)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer


def _check_memory(inputs: Inputs, group: Group, n_features: Mapping[str, int]) -> None:
    """A matrix of each consumer's features is there until the last unit has gone; while one is
    made, three more."""
    room = inputs.memory - (PROCESS_BYTES if inputs.device.type == "cpu" else 0)
    squares = [n * n for n in n_features.values()]
    needed, allowed = 8 * (sum(squares) + 3 * max(squares)), int(SHARE * room)
    if needed > allowed:
        most = max(n_features, key=n_features.__getitem__)
        raise ValueError(
            f"criterion obs, group {group.name}: {most} reads {n_features[most]:,} features; what "
            f"the group needs takes {size(needed)}, and {size(allowed)} of the memory is for that "
            "(cluster.memory_per_worker)"
        )


def _regression(
    model: nn.Module, layer: nn.Conv2d | nn.Linear, site: Site, walk: Walk
) -> Regression:
    share = min(1.0, MAX_ROWS / walk.n_rows(site.call, layer.weight.shape[0]))
    # the sums are needed however few rows there are
    found = Regression(layer, bias_of(layer), may_have_bias(model, site), sys.maxsize)
    found.add(lambda: zip(walk.of(walk.source(site.call)), walk.of(site.call)), share)
    return found


class _Reader:
    """A consumer's regression as units go: the inverse of its system, and its weights."""

    def __init__(self, regression: Regression, consumer: Channels, n_units: int) -> None:
        diagonal = RIDGE * regression.gram[0].diagonal().mean()
        system = regression.system()  # (features, features), perhaps the regression's own
        diagonal = diagonal.clamp(min=torch.finfo(torch.float32).tiny)
        system.diagonal().add_(diagonal)
        self.inverse = torch.linalg.inv(system)
        self.weights = regression.now[0].clone()  # (features, out)
        channels = torch.tensor(consumer.unit_of_channel)
        units = channels.repeat_interleave(regression.taps)
        self.features = [
            torch.nonzero(units == unit).flatten().to(system.device) for unit in range(n_units)
        ]

    def costs(self) -> Tensor:
        """(n_units,) growth of the squared error, if a unit goes next."""
        sizes = {len(features) for features in self.features}
        if len(sizes) == 1 and sizes != {0}:
            places = torch.stack(self.features)  # (n_units, f)
            blocks = self.inverse[places[:, :, None], places[:, None, :]]
            own = self.weights[places]
            return (own * torch.linalg.solve(blocks, own)).sum((1, 2))
        return torch.stack([self._cost(features) for features in self.features])

    def _cost(self, features: Tensor) -> Tensor:
        if len(features) == 0:
            return self.inverse.new_zeros(())
        own = self.weights[features]
        block = self.inverse[features[:, None], features]
        return (own * torch.linalg.solve(block, own)).sum()

    def remove(self, unit: int) -> None:
        gone = self.features[unit]
        if len(gone) == 0:
            return
        block = self.inverse[gone[:, None], gone]
        beside = self.inverse[:, gone]
        both = torch.cat([self.weights[gone], self.inverse[gone]], 1)
        found = beside @ torch.linalg.solve(block, both)
        n_out = self.weights.shape[1]
        self.weights -= found[:, :n_out]
        self.inverse -= found[:, n_out:]
        for rows in (self.weights, self.inverse, self.inverse.T):
            rows[gone] = 0
        # keeps later blocks of this unit solvable; its weights are zero, and so is their cost
        self.inverse[gone, gone] = 1
