"""Where in the image a unit acts on a logit: integrated gradients along the unit's own gate."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors
from torch.func import functional_call

from shapray.network.consumers import Reader, intercept, weigh
from shapray.network.group import Channels, Group

STEPS = 8  # the maps of a ResNet-20 then sum to within 5 % of what the cut changes, mostly 1 or 2


def contributions(
    model: nn.Module,
    group: Group,
    unit: int,
    images: Tensor,
    targets: Tensor,
    steps: int = STEPS,
    batch: int = 64,
) -> Tensor:
    """What each position of a unit adds to a logit of the image, all other units present.

    The unit is opened from 0 (cut) to 1 in all that reads it, and the logit's rise is handed out to
    the positions read as it happens: the integral of derivative times activation, by Gauss-Legendre
    quadrature, over the unit's channels and readings. So an image's map sums to its logit less that
    without the unit, up to the error of the quadrature.

    A linear layer behind a flatten reads a feature per position: those are laid out row by row on a
    grid as near to the image's proportions as their number allows. Readings at several resolutions
    are brought to the largest (`resized`).

    Args:
        model: in eval mode, float32; on the images' device.
        images: (n_images, channels, height, width).
        targets: (n_images,) int64, the logit looked at.
        steps: nodes of the quadrature.
        batch: images that are in the network at once; an image is in it `steps` times.
    Returns:
        (n_images, rows, columns) float64 on the CPU.
    Source: Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks"; here the path runs
    from the activation without the unit to the image's own, in place of from one image to another.
    """
    assert not model.training
    nodes, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]
    openings = torch.from_numpy((nodes + 1) / 2).float().to(images.device)
    proportion = images.shape[2] / images.shape[3]
    parts, n_rows = [], len(images) * steps
    for first in range(0, n_rows, batch):
        rows = torch.arange(first, min(first + batch, n_rows), device=images.device)
        image, step = rows // steps, rows % steps
        slopes = _slopes(model, group, unit, images[image], targets[image], openings[step])
        parts.append(_on_one_grid([_laid_out(slope, proportion) for slope in slopes]))
    of_rows = torch.cat(parts).unflatten(0, (len(images), steps))
    return torch.einsum("isyx,s->iyx", of_rows, torch.from_numpy(weights / 2))


def resized(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Maps at another resolution with the same sums: every cell is spread over the area it has
    there, so that one cell becomes several equal ones, or several become their sum.

    Args:
        maps: (n, height, width) float64.
    Returns:
        (n, rows, columns).
    """
    by_row, by_column = _overlap(rows, maps.shape[1]), _overlap(columns, maps.shape[2])
    return torch.einsum("yr,nrc,xc->nyx", by_row, maps, by_column)


def _slopes(
    model: nn.Module, group: Group, unit: int, images: Tensor, targets: Tensor, opening: Tensor
) -> list[Tensor]:
    """Derivatives of each image's logit for the gate at every position, a tensor per reading."""
    # Detached, so that nothing is kept for gradients of weights, and none is left behind.
    fixed = {name: weight.detach() for name, weight in model.named_parameters()}
    # A network may overwrite what a derivative needs, such as the input of an earlier layer.
    with torch.enable_grad(), allow_mutation_on_saved_tensors():
        with _opened(model, group, unit, opening) as gates:
            logits = functional_call(model, fixed, (images,))
        own = logits.gather(1, targets[:, None]).sum()
        slopes = torch.autograd.grad(own, gates, allow_unused=True, materialize_grads=True)
    return [slope.double().cpu() for slope in slopes]


@contextmanager
def _opened(model: nn.Module, group: Group, unit: int, opening: Tensor) -> Iterator[list[Tensor]]:
    """Within the context, all that reads the unit reads it times its image's `opening`; yields the
    gates, a factor per position, in the order of the readings.

    Args:
        opening: (n_images,).
    """
    gates = list[Tensor]()

    def opener(consumer: Channels) -> Reader:
        of_unit = torch.tensor(consumer.unit_of_channel, device=opening.device) == unit

        def scale(read: Tensor, channel: int) -> Tensor:
            read = read.movedim(channel, 1)  # (n_images, n_channels, *positions)
            # Of a layer without positions the unit's features are its positions.
            positions = read.shape[2:] or (int(of_unit.sum()),)
            gate = opening.view(-1, *(1 for _ in positions)).expand(-1, *positions).clone()
            gates.append(gate.requires_grad_())
            inner = gate.unsqueeze(1) if read.ndim > 2 else gate
            return _scaled(read, of_unit, inner).movedim(1, channel)

        return scale

    def weigher(norm: Channels) -> Reader:
        scale = opener(norm)
        return lambda read, channel: scale(torch.ones_like(read), channel)

    readers = [(c, opener(c)) for c in group.consumers if unit in c.unit_of_channel]
    norms = [(n, weigher(n)) for n in group.statistics if unit in n.unit_of_channel]
    with intercept(model, readers), weigh(model, norms):
        yield gates


def _scaled(read: Tensor, of_unit: Tensor, gate: Tensor) -> Tensor:
    """`read` with the unit's channels multiplied by a gate that broadcasts over them."""
    scaled = read.clone()
    scaled[:, of_unit] = read[:, of_unit] * gate
    return scaled


def _laid_out(slope: Tensor, proportion: float) -> Tensor:
    """(n_images, *positions) -> (n_images, rows, columns)."""
    if slope.ndim == 3:
        return slope
    flat = slope.flatten(1)
    n = flat.shape[1]
    rows = min(
        (r for r in range(1, n + 1) if n % r == 0),
        key=lambda r: abs(math.log(r * r / n / proportion)),
    )
    return flat.unflatten(1, (rows, n // rows))


def _on_one_grid(maps: list[Tensor]) -> Tensor:
    """The sum of maps of several readings, at the largest resolution."""
    rows, columns = max(m.shape[1] for m in maps), max(m.shape[2] for m in maps)
    return torch.stack([resized(m, rows, columns) for m in maps]).sum(0)


def _overlap(n_new: int, n_old: int) -> Tensor:
    """(n_new, n_old) float64: the share of each old cell that lies in each new one, of so many
    cells of equal size side by side each."""
    new, old = (torch.arange(n + 1, dtype=torch.float64) / n for n in (n_new, n_old))
    ends = torch.minimum(new[1:, None], old[None, 1:])
    starts = torch.maximum(new[:-1, None], old[None, :-1])
    return (ends - starts).clamp(min=0) * n_old
