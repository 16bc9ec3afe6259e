"""A layer's ridge regression in the plainest way: every row spelled out, solved in float64."""

import numpy as np
import torch
from torch import Tensor, nn

RIDGE = 1e-3  # of the mean over features of their sums of squares


def rows_of(layer: nn.Conv2d | nn.Linear, inputs: Tensor) -> np.ndarray:
    """What each output position reads: (groups, n_rows, channels of a group * taps).

    A convolution's come from kernels that copy one tap each, so it pads and strides by itself.
    """
    if isinstance(layer, nn.Linear):
        return inputs.flatten(0, -2)[None].double().numpy()
    _, *shape = layer.weight.shape
    n_features = int(np.prod(shape))
    copies = torch.eye(n_features).view(n_features, *shape).repeat(layer.groups, 1, 1, 1)
    found = layer._conv_forward(inputs, copies, None)  # (n, groups * features, height, width)
    return (
        found.movedim(1, 3)
        .flatten(0, 2)
        .unflatten(1, (layer.groups, -1))
        .movedim(1, 0)
        .double()
        .numpy()
    )


def outputs_of(layer: nn.Conv2d | nn.Linear, outputs: Tensor) -> np.ndarray:
    """(groups, n_rows, outputs of a group), in the order of `rows_of`."""
    if isinstance(layer, nn.Linear):
        return outputs.flatten(0, -2)[None].double().numpy()
    flat = outputs.movedim(1, 3).flatten(0, 2).unflatten(1, (layer.groups, -1))
    return flat.movedim(1, 0).double().numpy()


def read_and_put_out(model: nn.Module, layer: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer reads in a network, and what it makes of it."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, args, output: seen.extend([*args, output]))
    with torch.inference_mode():
        model(images.clone())
    handle.remove()
    read, output = seen
    return read, output


def penalty(rows: np.ndarray) -> float:
    return RIDGE * float((rows**2).sum(0).mean())


def ridge(
    rows: np.ndarray,
    targets: np.ndarray,
    now: np.ndarray,
    bias: np.ndarray | None = None,
    of: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The weights nearest to the targets, drawn to the present ones.

    Args:
        rows: (n, features); those that may not be read are left out.
        targets: (n, out).
        now: (features, out), the present weights.
        bias: (out,), a fixed one; None fits it.
        of: the penalty, if it is not that of these rows.
    Returns:
        weights (features, out) and bias (out,).
    """
    strength = np.sqrt(penalty(rows) if of is None else of)
    n_features = rows.shape[1]
    ones = np.ones((len(rows), 1)) if bias is None else np.zeros((len(rows), 1))
    if bias is not None:
        targets = targets - bias
    above = np.hstack([rows, ones])
    below = np.hstack([strength * np.eye(n_features), np.zeros((n_features, 1))])
    found = np.linalg.lstsq(
        np.vstack([above, below]), np.vstack([targets, strength * now]), rcond=None
    )[0]
    return found[:-1], found[-1] if bias is None else bias


def fitted(
    layer: nn.Conv2d | nn.Linear,
    inputs: Tensor,
    targets: Tensor,
    bias: np.ndarray | None = None,
    channels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weights in the layer's shape and bias; the arguments of `ridge`, in a layer's own shapes.

    Args:
        channels: (n_channels,) bool, those that may be read; the others' weights are 0.
    """
    rows, wanted = rows_of(layer, inputs), outputs_of(layer, targets)
    n_groups, _, n_out = wanted.shape
    weight = layer.weight.detach().double().numpy().reshape(n_groups, n_out, -1)
    taps = weight.shape[2] // layer.weight.shape[1]
    reads = np.ones((n_groups, weight.shape[2]), bool)
    if channels is not None:
        reads = channels.numpy().repeat(taps).reshape(reads.shape)
    new, biases = np.zeros_like(weight), []
    for g, read in enumerate(reads):
        given = None if bias is None else bias.reshape(n_groups, n_out)[g]
        w, b = ridge(rows[g][:, read], wanted[g], weight[g][:, read].T, given)
        new[g][:, read] = w.T
        biases.append(b)
    return torch.tensor(new).view(layer.weight.shape), torch.tensor(np.concatenate(biases))
