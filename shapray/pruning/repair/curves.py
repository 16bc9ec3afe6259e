"""What cutting one group alone costs after repair, by how many of its units go."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from shapray.engine.arithmetic import float32_products
from shapray.engine.trace import fold
from shapray.network.group import CONSUMERS, Group
from shapray.network.index_maps import channels_left, removable
from shapray.network.silence import silenced, without
from shapray.pruning.repair.least_squares import (
    IMAGES_AT_ONCE,
    bias_of,
    least_squares,
    may_have_bias,
)
from shapray.pruning.repair.regression import MAX_ROWS, Regression
from shapray.pruning.repair.sites import Site, find_sites
from shapray.pruning.repair.walk import Walk

CURVE_IMAGES = 256  # that a loss is measured on
BROKEN = 1e3  # nats: the loss of a network whose outputs are not finite
POINTS = 8  # of a curve: an eighth of the units, two eighths, ...


def shuffled(n_images: int) -> Tensor:
    """The order in which calibration images are taken where not all are, (n,) int64: the classes of
    a folder come one after the other, and some images are to be of all of them."""
    return torch.randperm(n_images, generator=torch.Generator().manual_seed(0))


def counts(n_units: int, step: int = 1) -> list[int]:
    """How many units go at each point of a curve: 0 first, all but one step at most.

    Args:
        step: how many units go at a time (see `Group.step`).
    """
    n_steps = n_units // step
    return [
        n * step
        for n in sorted({min(n_steps - 1, round(n_steps * i / POINTS)) for i in range(POINTS + 1)})
    ]


@float32_products()
def loss_curves(
    model: nn.Module,
    group: Group,
    orders: Mapping[str, Sequence[int]],
    images: Tensor,
    repaired: bool,
    folded: nn.Module | None = None,
) -> dict[str, list[float]]:
    """The loss with the first so many units of an order removed, all other groups whole.

    The loss is the KL divergence of the outputs from the whole network's, in nats, mean over the
    images; so it needs no labels. Repaired are the group's consumers, of a deep group all that lies
    behind them, by least squares. A fit is measured on the half of the images that it was not made
    with: on its own, it does the better the fewer images there are for its weights, which says
    nothing of the cut.

    Args:
        model: in eval mode.
        orders: name -> the group's units, those that go first in front.
        images: (n, channels, height, width) float32, on the model's device.
        repaired: whether the consumers are refitted.
        folded: `fold(model, images[:1])`, if it is there already.
    Returns:
        name -> a loss for each of `counts`.
    """
    folded = fold(model, images[:1]) if folded is None else folded
    # as they are cut: a unit that would leave a layer none is passed over
    orders = {name: removable(group, order) for name, order in orders.items()}
    sites: list[Site] = []
    if isinstance(folded, fx.GraphModule) and group.flat:
        names = {consumer.module for consumer in group.consumers}
        sites = [site for site in find_sites(model, folded, names)[0] if site.layer in names]
        if {site.layer for site in sites} == names:
            with torch.inference_mode():
                return _refitted_in_place(model, folded, group, sites, orders, images, repaired)
    with torch.inference_mode():
        halves = images[::2], images[1::2]
        reference = torch.cat([_outputs(model, half) for half in halves])

        def loss(units: Sequence[int]) -> float:
            removed = {group.name: units}
            if not units:
                return 0.0
            if repaired and len(images) > 1:
                networks = [
                    least_squares(model, model, [group], removed, half).network
                    for half in halves[::-1]
                ]
            else:
                networks = [silenced(model, [group], removed)] * 2
            found = [_outputs(network, half) for network, half in zip(networks, halves)]
            return _kl(torch.cat(found), reference)

        return {
            name: [loss(order[:count]) for count in counts(group.n_units, group.step)]
            for name, order in orders.items()
        }


def _refitted_in_place(
    model: nn.Module,
    folded: fx.GraphModule,
    group: Group,
    sites: Sequence[Site],
    orders: Mapping[str, Sequence[int]],
    images: Tensor,
    repaired: bool,
) -> dict[str, list[float]]:
    """All points from one pass of what lies before the consumers: the inputs of a flat group's
    consumers stay what they are, so that a fit on some channels is part of the fit on all."""
    walk = Walk(folded, images, min(IMAGES_AT_ONCE, -(-len(images) // 2)))
    walk.run_to(walk.source(sites[0].call))
    walk.run_to(sites[-1].call, keep=None)
    reference = walk.output_with({})
    inputs = {site.call: walk.of(walk.source(site.call)) for site in sites}
    regressions: dict[str, list[Regression]] = {}
    for site in sites if repaired else ():
        layer = folded.get_submodule(site.layer)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        n_rows = max(1, walk.n_rows(site.call, layer.weight.shape[0]) // 2)
        share = min(1.0, MAX_ROWS / n_rows)
        pairs = list(zip(inputs[site.call], walk.of(site.call)))
        regressions[site.call] = []
        # for the batches of the other half; a lone image has none
        for half in (pairs[1::2] or pairs, pairs[::2]):
            found = Regression(
                layer, bias_of(layer), may_have_bias(model, site), int(n_rows * share)
            )
            found.add(lambda half=half: half, share)  # type: ignore[misc]
            regressions[site.call].append(found)

    def outputs(units: Sequence[int]) -> Tensor:
        stay = channels_left([group], {group.name: units}, CONSUMERS)
        changed = {}
        for site in sites:
            layer = folded.get_submodule(site.layer)
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            channels = stay[site.layer]
            if repaired:
                fits = [found.solve(channels) for found in regressions[site.call]]
                given = [{"weight": fit.weight} for fit in fits]
                if layer.bias is not None:
                    for values, fit in zip(given, fits):
                        values["bias"] = fit.bias
            else:
                given = [{"weight": without(layer, channels)}] * 2
            changed[site.call] = [
                torch.func.functional_call(layer, given[i % 2], (x,))
                for i, x in enumerate(inputs[site.call])
            ]
        return walk.output_with(changed)

    return {
        name: [
            _kl(outputs(order[:count]), reference) if count else 0.0
            for count in counts(group.n_units, group.step)
        ]
        for name, order in orders.items()
    }


def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part.clone()) for part in images.split(IMAGES_AT_ONCE)])


def _kl(outputs: Tensor, reference: Tensor) -> float:
    right = nn.functional.log_softmax(reference.double(), 1)
    found = nn.functional.log_softmax(outputs.double(), 1)
    loss = float(nn.functional.kl_div(found, right, log_target=True, reduction="batchmean"))
    return loss if math.isfinite(loss) else BROKEN
