"""The public function that measures a network: how good and how big it is."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from shapray.arguments import about, labels_of, named_as_arguments, network_of, pixels_of
from shapray.inputs.images import check_labels
from shapray.inputs.outputs import read_logits
from shapray.network.probe import probe
from shapray.pruning.evaluate import IMAGES_AT_ONCE, Interval, count_macs, joined, tally


@dataclass(frozen=True)
class Quality:
    """How good and how big a network is.

    Attributes:
        top1: share of the images whose largest output is the label's.
        top1_interval: 95 % of it, low and high (Wilson's).
        top5: share of the images whose label is among the five largest; None below six classes.
        per_class: top1 of every class's images, None where there are none.
        loss: mean cross-entropy in nats.
        loss_interval: 95 % of it, from the images' spread; None where that is not known (a single
            image, a loss that is not finite).
        parameters: shared ones once.
        multiply_adds: for one image, of convolutions and matrix products.
        n_images: that it was measured on.
    """

    top1: float
    top1_interval: Interval
    top5: float | None
    per_class: tuple[float | None, ...] = field(repr=False)
    loss: float
    loss_interval: Interval | None
    parameters: int
    multiply_adds: int
    n_images: int


def evaluate(model: nn.Module, images: Tensor, labels: Tensor | Sequence[int]) -> Quality:
    """Accuracy, loss and size of a network, in eval mode, on the device where it lies.

    Args:
        model: left as it is.
        images: (n, channels, height, width), not those that it was scored on.
        labels: (n,) integers from 0.
    Raises:
        ValueError: an argument is wrong; names it.
    """
    network, pixels = network_of(model).eval(), pixels_of(images)
    targets = labels_of(labels, len(pixels))
    if targets is None:
        raise ValueError("labels: None, and accuracy is measured with them")
    own = like(network)
    pixels, example = pixels.to(own.dtype), pixels[:1].to(own)
    about("model", lambda: read_logits(network, example))
    n_classes = about("images", lambda: probe(network, example))
    with named_as_arguments():
        check_labels(targets, [str(i) for i in range(len(pixels))], n_classes, "labels")
    slices = zip(pixels.split(IMAGES_AT_ONCE), targets.split(IMAGES_AT_ONCE))
    found = joined(tally(network, part, of_part, own.device) for part, of_part in slices)
    parameters, multiply_adds = count_macs(network, example)
    return Quality(
        top1=found.top1,
        top1_interval=found.top1_interval,
        top5=found.top5,
        per_class=found.per_class,
        loss=found.loss,
        loss_interval=found.loss_interval,
        parameters=parameters,
        multiply_adds=multiply_adds,
        n_images=found.n,
    )


def like(network: nn.Module) -> Tensor:
    """A tensor of the type and on the device that a network's images are to have."""
    tensors = [*network.parameters(), *network.buffers(), torch.zeros(())]
    return next(tensor for tensor in tensors if tensor.is_floating_point())
