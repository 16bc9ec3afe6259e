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

from shapray.engine.trace import fold
from shapray.network.group import CONSUMERS, Group
from shapray.network.index_maps import channels_left
from shapray.pruning.repair.curves import counts
from shapray.pruning.repair.sites import Site, find_sites
from shapray.pruning.repair.walk import Walk

RIDGE = 1e-3
RIDGES = (1e-4, RIDGE, 1e-2)
IMAGES_AT_ONCE = 32
Grams = Mapping[str, Tensor]  # layer -> (n_channels, n_channels) float64


def channel_map(gram: Tensor, wanted: Tensor, ridge: float) -> Tensor:
    """What is wanted, predicted from what is read.

    Args:
        gram: (n_kept, n_kept) sums of products of the channels that are read.
        wanted: (n_channels, n_kept) sums of products of the channels that are wanted with those.
        ridge: of the mean of the gram's diagonal.
    Returns:
        (n_channels, n_kept).
    """
    system = gram.clone()
    floor = torch.finfo(torch.float32).tiny  # solvable where all that stays is zero
    system.diagonal().add_((ridge * system.diagonal().mean()).clamp(min=floor))
    return torch.linalg.solve(system, wanted.T).T


def merged(weight: Tensor, kept: Tensor, mapped: Tensor) -> Tensor:
    """A layer's weights with a map in them, in their own shape; zero for channels that go.

    Args:
        weight: (n_out, n_channels, ...).
        kept: (n_channels,) bool.
        mapped: (n_channels, n_kept), see `channel_map`.
    """
    found = torch.zeros_like(weight)
    found[:, kept] = torch.einsum("oc...,ck->ok...", weight.double(), mapped).to(weight)
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
            rows = _rows(layer, inputs[0])
            found[name] = found.get(name, 0) + (rows @ rows.T).double()

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
        for name, kept in channels_left(groups, removed, CONSUMERS).items():
            layer = _layer(network, name)
            mapped = channel_map(*_of_kept(grams[name], kept), ridge)
            layer.weight.copy_(merged(layer.weight, kept, mapped))
    return network


def step_by_step(
    model: nn.Module,
    groups: Sequence[Group],
    removed: Mapping[str, Sequence[int]],
    images: Tensor,
    ridge: float,
) -> nn.Module:
    """As `compensated`, but what is read comes from the network that is compensated so far, layer
    by layer in the order of the data: later maps make good what earlier ones have left. This goes
    beyond the paper.
    """
    network, channels = copy.deepcopy(model), channels_left(groups, removed, CONSUMERS)
    before, after = fold(model, images[:1]), fold(model, images[:1])
    assert isinstance(before, fx.GraphModule)
    assert isinstance(after, fx.GraphModule)
    with torch.inference_mode():
        whole, thin = (Walk(graph, images, IMAGES_AT_ONCE) for graph in (before, after))
        for site in find_sites(model, after, channels)[0]:
            if site.layer in channels:
                layer, kept = _layer(after, site.layer), channels[site.layer]
                source = thin.source(site.call)
                for walk in (whole, thin):
                    walk.run_to(source)
                pairs = [
                    (_rows(layer, x)[kept], _rows(layer, y))
                    for x, y in zip(thin.of(source), whole.of(source))
                ]
                gram = sum((x @ x.T).double() for x, _ in pairs)
                wanted = sum((y @ x.T).double() for x, y in pairs)
                assert isinstance(gram, Tensor)
                assert isinstance(wanted, Tensor)
                mapped = channel_map(gram, wanted, ridge)
                for found in (layer, _layer(network, site.layer)):
                    found.weight.copy_(merged(found.weight, kept, mapped))
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
            stay = channels_left([group], {group.name: units}, CONSUMERS)
            for site in sites:
                layer = _layer(folded, site.layer)
                gram, kept = grams[site.layer], stay[site.layer]
                mapped = channel_map(*_of_kept(gram, kept), ridge)
                given = {"weight": merged(layer.weight, kept, mapped)}
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


def _of_kept(gram: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Of the kept channels with themselves, and of all with them."""
    return gram[kept][:, kept], gram[:, kept]


def _rows(layer: nn.Module, read: Tensor) -> Tensor:
    """(n_channels, n * positions)."""
    if isinstance(layer, nn.Conv2d):
        return read.transpose(0, 1).flatten(1)
    return read.flatten(0, -2).T
