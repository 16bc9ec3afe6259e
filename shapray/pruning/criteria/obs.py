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
    _check_memory(inputs, group, layers)
    walk = Walk(folded, images, IMAGES_AT_ONCE)
    kept = {name for site in sites for name in (walk.source(site.call), site.call)}
    readers = []
    for site in sites:
        walk.run_to(site.call, keep=kept)
        regression = _regression(inputs.model, layers[site.layer], site, walk)
        readers += _readers(regression, consumers[site.layer], group.n_units)
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


def _check_memory(
    inputs: Inputs, group: Group, layers: Mapping[str, nn.Conv2d | nn.Linear]
) -> None:
    """A matrix of each consumer's features is there until the last unit has gone, for each of its
    convolution groups; while one is made, three more."""
    room = inputs.memory - (PROCESS_BYTES if inputs.device.type == "cpu" else 0)
    n_features = {name: layer.weight[0].numel() for name, layer in layers.items()}
    squares = [getattr(layers[name], "groups", 1) * n * n for name, n in n_features.items()]
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


def _readers(regression: Regression, consumer: Channels, n_units: int) -> list["_Reader"]:
    """One for each convolution group: what it reads is another's nothing."""
    diagonals = regression.gram.diagonal(dim1=1, dim2=2).mean(1)
    diagonals = (RIDGE * diagonals).clamp(min=torch.finfo(torch.float32).tiny)
    channels = torch.tensor(consumer.unit_of_channel).view(regression.groups, -1)
    return [
        _Reader(system, diagonal, now, of_group.repeat_interleave(regression.taps), n_units)
        for system, diagonal, now, of_group in zip(
            regression.system(), diagonals, regression.now, channels
        )
    ]


class _Reader:
    """A regression as units go: the inverse of its system, and its weights.

    Args:
        system: (features, features); overwritten.
        diagonal: what is added to it.
        weights: (features, out).
        units: (features,) the unit of each, -1 for none.
        n_units: of the group, some of which may have no features here.
    """

    def __init__(
        self, system: Tensor, diagonal: Tensor, weights: Tensor, units: Tensor, n_units: int
    ) -> None:
        system.diagonal().add_(diagonal)
        self.inverse = torch.linalg.inv(system)
        self.weights, self.n_units = weights.clone(), n_units
        own = sorted(set(units.tolist()) - {-1})
        self.features = {
            unit: torch.nonzero(units == unit).flatten().to(system.device) for unit in own
        }

    def costs(self) -> Tensor:
        """(n_units,) growth of the squared error, if a unit goes next."""
        sizes = {len(features) for features in self.features.values()}
        if len(sizes) == 1:
            places = torch.stack(list(self.features.values()))  # (own units, f)
            blocks = self.inverse[places[:, :, None], places[:, None, :]]
            weights = self.weights[places]
            found = (weights * torch.linalg.solve(blocks, weights)).sum((1, 2))
        else:
            found = torch.stack([self._cost(features) for features in self.features.values()])
        costs = self.inverse.new_zeros(self.n_units)
        costs[list(self.features)] = found
        return costs

    def _cost(self, features: Tensor) -> Tensor:
        own = self.weights[features]
        block = self.inverse[features[:, None], features]
        return (own * torch.linalg.solve(block, own)).sum()

    def remove(self, unit: int) -> None:
        gone = self.features.get(unit)
        if gone is None:
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
