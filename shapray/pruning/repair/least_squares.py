"""The layers behind a cut refitted, so that what follows them sees what it saw before.

In the order of the data, each layer gets the weights and bias with which its output, after the
BatchNorm and the additions that follow, comes nearest to the whole network's in least squares,
although its input now comes from the cut network: errors of earlier layers are made good by later
ones, and so is what earlier cuts changed on a shortcut. One ridge regression a layer, tap by tap,
towards the present weights; no labels, no gradients. Where only what is above zero is read of a
sum, targets below zero are met by anything below zero, and the fit is repeated with that freedom.

Sources: reconstruction of a layer's output after channels are cut is He et al. 2017, Channel
Pruning for Accelerating Very Deep Neural Networks; of what is above zero Zhang et al. 2015,
Accelerating Very Deep Convolutional Networks; here over all taps at once, cumulative, and with the
residual sum as the target.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from shapray.engine.arithmetic import float32_products
from shapray.engine.trace import fold
from shapray.network.group import CONSUMERS, Group
from shapray.network.index_maps import channels_left
from shapray.network.silence import silenced
from shapray.pruning.repair.regression import Fit, Regression
from shapray.pruning.repair.sites import Site, find_sites
from shapray.pruning.repair.walk import Walk, run_along

REFIT_ROWS = 2**16  # of a layer that is refitted once: more images tell more than all positions
VIEWS = 4  # of an image, for a fit: 256 as they are know too little of what others look like
IMAGES_AT_ONCE = 32
PASSES = 2  # of a fit whose target is free below zero, after the first


@dataclass(frozen=True)
class Refitted:
    """What was done.

    Attributes:
        network: of the whole network's shape; cut as planned it is the repaired one.
        layers: names of the modules that got new weights.
        left_out: those that did not, with the reason.
    """

    network: nn.Module
    layers: tuple[str, ...]
    left_out: dict[str, str]


@float32_products()
def least_squares(
    whole: nn.Module,
    start: nn.Module,
    groups: Sequence[Group],
    removed: Mapping[str, Sequence[int]],
    images: Tensor,
    seed: int = 0,
    step: Callable[[], None] = lambda: None,
) -> Refitted:
    """Refit what lies behind a cut.

    Args:
        whole: the network before the cut, in eval mode.
        start: the network whose weights are refitted, of the same structure: `whole`, or what
            another repair has made of it.
        groups: those that lose units, at least.
        removed: group -> units.
        images: (n, channels, height, width) float32, on the networks' device.
        seed: of the choice of positions where a layer has very many.
        step: called after every layer.
    """
    network = silenced(start, groups, removed)
    channels = channels_left(groups, removed, CONSUMERS)
    before, after = (fold(model, images[:1]) for model in (whole, network))
    if not isinstance(before, fx.GraphModule) or not isinstance(after, fx.GraphModule):
        reason = "torch.fx cannot trace the network"
        return Refitted(network, (), dict.fromkeys(channels, reason))
    sites, left_out = find_sites(network, after, channels)
    with torch.inference_mode():
        walks = Walk(before, images, IMAGES_AT_ONCE), Walk(after, images, IMAGES_AT_ONCE)
        for site in run_along(walks, sites):
            _refit(network, after, site, channels.get(site.layer), walks, seed)
            step()
    return Refitted(network, tuple(site.layer for site in sites), left_out)


def may_have_bias(network: nn.Module, site: Site) -> bool:
    """A layer without one can be given none, except by the BatchNorm behind it."""
    return site.norm is not None or network.get_submodule(site.layer).bias is not None


def bias_of(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """(n_out,), zeros if it has none."""
    return layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias


def _refit(
    network: nn.Module,
    after: fx.GraphModule,
    site: Site,
    channels: Tensor | None,
    walks: tuple[Walk, Walk],
    seed: int,
) -> None:
    whole, thin = walks
    layer = after.get_submodule(site.layer)  # with its BatchNorm folded in
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    wanted, inputs = whole.of(site.total), thin.of(thin.source(site.call))

    def added() -> Iterator[Tensor]:
        """What the layer's output is added to: made anew each time, it is as large as the total."""
        return (total - own for total, own in zip(thin.of(site.total), thin.of(site.call)))

    n_rows = thin.n_rows(site.call, layer.weight.shape[0])
    share = min(1.0, REFIT_ROWS / n_rows)
    regression = Regression(
        layer, bias_of(layer), may_have_bias(network, site), int(n_rows * share), channels
    )

    def targets() -> Iterable[tuple[Tensor, Tensor]]:
        for x, all_of_it, rest in zip(inputs, wanted, added()):
            yield x, all_of_it - rest

    regression.add(targets, share, seed)
    fit = regression.solve()
    for _ in range(PASSES if site.rectified else 0):
        regression.free_below_zero(fit, lambda: zip(inputs, wanted, added()), share, seed)
        fit = regression.solve()
    _set(layer, fit)
    _write(network, site, fit)
    for batch, (x, rest) in enumerate(zip(inputs, added())):
        again = layer(x)
        thin.put(site.call, batch, again)
        thin.put(site.total, batch, again + rest)


def _set(layer: nn.Conv2d | nn.Linear, fit: Fit) -> None:
    layer.weight.copy_(fit.weight)
    if layer.bias is not None:
        layer.bias.copy_(fit.bias)


def _write(network: nn.Module, site: Site, fit: Fit) -> None:
    """Put a fit into the network's own modules.

    A BatchNorm keeps its meaning: its statistics become those of the new outputs, and its scale and
    shift such that the two cancel, so that the network computes the fit in eval mode, and nearly so
    with the statistics of a batch when it is trained on.
    """
    layer = network.get_submodule(site.layer)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    layer.weight.copy_(fit.weight)
    if site.norm is None:
        if layer.bias is not None:
            layer.bias.copy_(fit.bias)
        return
    if layer.bias is not None:
        layer.bias.zero_()
    norm = network.get_submodule(site.norm)
    assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if norm.affine:
        norm.running_mean.copy_(fit.mean)
        norm.running_var.copy_(fit.variance)
        norm.weight.copy_((fit.variance + norm.eps).sqrt())
        norm.bias.copy_(fit.bias + fit.mean)
    else:
        norm.running_mean.copy_(-fit.bias)
        norm.running_var.fill_(1 - norm.eps)
