"""GRAIL: what a cut layer no longer reads is put together again from what it still reads.

H is what a layer reads in the whole network, a row per calibration image and position, G = H'H. The
channels that go are predicted from those that stay by one ridge regression,

    B = G[all, kept] (G[kept, kept] + ridge * mean(diag G[kept, kept]) I)^-1,

which is merged into the layer's weights, the same for all taps: W'[o, k] = sum_c W[o, c] B[c, k].
Biases stay, and so do layers behind: every layer's G is of the whole network.

Source: Tang, Wang, Thiele, Saukh 2026, GRAIL: Post-hoc Compensation by Linear Reconstruction for
Compressed Networks.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from shapray.network.group import Group
from shapray.network.silence import read_channels
from shapray.pruning.repair.curves import counts
from shapray.pruning.repair.sites import Site, find_sites
from shapray.pruning.repair.walk import Walk

RIDGE = 1e-3
RIDGES = (1e-4, RIDGE, 1e-2)
IMAGES_AT_ONCE = 32
Grams = Mapping[str, Tensor]  # layer -> (n_channels, n_channels) float64


def channel_map(gram: Tensor, kept: Tensor, ridge: float) -> Tensor:
    """What is read of all channels, predicted from those that stay.

    Args:
        gram: (n_channels, n_channels), of all channels.
        kept: (n_channels,) bool.
        ridge: of the mean of the kept channels' diagonal.
    Returns:
        (n_channels, n_kept).
    """
    system = gram[kept][:, kept].clone()
    floor = torch.finfo(torch.float32).tiny  # solvable where all that stays is zero
    system.diagonal().add_((ridge * system.diagonal().mean()).clamp(min=floor))
    return torch.linalg.solve(system, gram[kept]).T


def merged(weight: Tensor, gram: Tensor, kept: Tensor, ridge: float) -> Tensor:
    """A layer's weights with the map in them, in their own shape; zero for channels that go.

    Args:
        weight: (n_out, n_channels, ...).
    """
    found = torch.zeros_like(weight)
    found[:, kept] = torch.einsum(
        "oc...,ck->ok...", weight.double(), channel_map(gram, kept, ridge)
    ).to(weight)
    return found


def grams_of(model: nn.Module, layers: Iterable[str], images: Tensor) -> Grams:
    """Of what convolutions and linear layers read, over all images and positions.

    Args:
        model: the whole network, in eval mode.
        layers: names of modules, each of one convolution group.
        images: (n, channels, height, width).
    """
    found: dict[str, Tensor] = {}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[name] = found.get(name, 0) + _gram(layer, inputs[0])

        return model.get_submodule(name).register_forward_pre_hook(add)

    handles = [watch(name) for name in layers]
    try:
        with torch.inference_mode():
            for part in images.split(IMAGES_AT_ONCE):
                model(part.clone())  # it may change its input
    finally:
        for handle in handles:
            handle.remove()
    return found


def compensated(
    model: nn.Module,
    groups: Sequence[Group],
    removed: Mapping[str, Sequence[int]],
    grams: Grams,
    ridge: float,
) -> nn.Module:
    """A copy of the network in which all layers that lose channels have the map in their weights.

    Args:
        groups: those of `removed` among them.
        removed: group -> units.
        grams: of all layers that read them.
    """
    network = copy.deepcopy(model)
    with torch.inference_mode():
        for name, kept in read_channels(groups, removed).items():
            layer = _layer(network, name)
            layer.weight.copy_(merged(layer.weight, grams[name], kept, ridge))
    return network


def loss_curves(
    model: nn.Module,
    folded: fx.GraphModule,
    group: Group,
    order: Sequence[int],
    images: Tensor,
    grams: Grams,
    ridge: float = RIDGE,
) -> list[float]:
    """The loss with the first so many units of a flat group gone and this repair, all other groups
    whole: the KL divergence from the whole network's outputs in nats, for each of `counts`.

    The counterpart of `shapray.pruning.repair.curves`. A map has so few weights, and so many
    positions to be fitted on, that its own images will do to measure it.
    """
    readers = {consumer.module for consumer in group.consumers}
    sites: list[Site] = [
        site for site in find_sites(model, folded, readers)[0] if site.layer in readers
    ]
    assert group.flat
    assert {site.layer for site in sites} == readers
    with torch.inference_mode():
        walk = Walk(folded, images, IMAGES_AT_ONCE)
        walk.run_to(walk.source(sites[0].call))
        walk.run_to(sites[-1].call, keep=None)
        reference = walk.output_with({})
        inputs = {site.call: walk.of(walk.source(site.call)) for site in sites}

        def loss(units: Sequence[int]) -> float:
            changed = {}
            stay = read_channels([group], {group.name: units})
            for site in sites:
                layer = _layer(folded, site.layer)
                gram, kept = grams[site.layer], stay[site.layer]
                given = {"weight": merged(layer.weight, gram, kept, ridge)}
                changed[site.call] = [
                    torch.func.functional_call(layer, given, (x,)) for x in inputs[site.call]
                ]
            return divergence(walk.output_with(changed), reference)

        return [loss(order[:count]) if count else 0.0 for count in counts(group.n_units)]


def divergence(outputs: Tensor, reference: Tensor) -> float:
    """KL divergence of the outputs from the reference's, nats, mean over the images."""
    right = nn.functional.log_softmax(reference.double(), 1)
    found = nn.functional.log_softmax(outputs.double(), 1)
    return float(nn.functional.kl_div(found, right, log_target=True, reduction="batchmean"))


def _layer(network: nn.Module, name: str) -> nn.Conv2d | nn.Linear:
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    assert getattr(layer, "groups", 1) == 1
    return layer


def _gram(layer: nn.Module, read: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        rows = read.transpose(0, 1).flatten(1)  # (n_channels, n * positions)
    else:
        rows = read.flatten(0, -2).T
    return (rows @ rows.T).double()
