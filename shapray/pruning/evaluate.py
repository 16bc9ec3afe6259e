"""How good and how big a network is."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor, nn

from shapray.network.multiply_adds import MultiplyAdds

Interval = tuple[float, float]
Z = NormalDist().inv_cdf(0.975)  # of 95 % intervals
IMAGES_AT_ONCE = 64  # of a forward pass of the whole network
TOP = 5  # of `top5`; says something where there are more classes


@dataclass(frozen=True, eq=False)
class Tally:
    """How a network did on each of some images; `joined` puts those of slices together.

    Everything is derived from the images in their order, so it does not matter how they were
    sliced, and two networks can be compared image by image.

    Attributes:
        labels: (n,) int32.
        ranks: (n,) int32, how many classes come before the label by their logits: 0 is a hit. Of
            equal logits the first class comes first; one that is NaN comes before all numbers,
            but a label's own is never a hit.
        losses: (n,) float64, cross-entropy in nats.
        n_classes: of the network's outputs, whether or not there are images of each.
    """

    labels: np.ndarray
    ranks: np.ndarray
    losses: np.ndarray
    n_classes: int

    @property
    def n(self) -> int:
        return len(self.labels)

    @property
    def hits(self) -> np.ndarray:
        """(n,) bool: the largest logit is the label's."""
        return self.ranks == 0

    @property
    def top1(self) -> float:
        """Share of images whose largest logit is the label's."""
        return float(self.hits.mean())

    @property
    def top1_interval(self) -> Interval:
        """95 % Wilson interval of `top1`."""
        return wilson_interval(int(self.hits.sum()), self.n)

    @property
    def top5(self) -> float | None:
        """Share of images whose label is among the five largest; None below six classes."""
        return float((self.ranks < TOP).mean()) if self.n_classes > TOP else None

    @property
    def per_class(self) -> tuple[float | None, ...]:
        """`top1` of every class's images, None where there are none; `n_classes` long."""
        counts = np.bincount(self.labels, minlength=self.n_classes)
        hits = np.bincount(self.labels[self.hits], minlength=self.n_classes)
        return tuple(k / n if n else None for k, n in zip(hits.tolist(), counts.tolist()))

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats; not finite where an image's is not."""
        return float(self.losses.mean())

    @property
    def loss_interval(self) -> Interval | None:
        """95 % interval of `loss`, from the images' spread; None where that is not known."""
        return mean_interval(self.losses)


def joined(tallies: Iterable[Tally]) -> Tally:
    """The tally of all images, from those of slices in the images' order; at least one."""
    parts = list(tallies)
    assert len({part.n_classes for part in parts}) == 1
    return Tally(
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.ranks for part in parts]),
        np.concatenate([part.losses for part in parts]),
        parts[0].n_classes,
    )


def tally(
    model: nn.Module, images: Tensor, labels: Tensor, device: str | torch.device = "cpu"
) -> Tally:
    """Hits and cross-entropies of one batch.

    The logits are the network's own (float32); the losses are taken in float64.

    Args:
        model: in eval mode, on `device`.
        images: (n, C, H, W) float32, on any device.
        labels: (n,) int64, below the number of classes, on any device.
    """
    assert not model.training
    assert len(images) == len(labels), (len(images), len(labels))
    with torch.inference_mode():
        return tally_of(model(images.to(device, copy=True)), labels)


def tally_of(logits: Tensor, labels: Tensor) -> Tally:
    """The same of what a network made of some images.

    Args:
        logits: (n, n_classes).
        labels: (n,) int64, below `n_classes`, on any device.
    """
    labels, n_classes = labels.to(logits.device), logits.shape[1]
    losses = nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    own = logits.gather(1, labels[:, None])
    later = torch.arange(n_classes, device=logits.device) > labels[:, None]
    behind = (logits < own) | ((logits == own) & later)
    ranks = n_classes - 1 - behind.sum(dim=1)
    return Tally(_int32(labels), _int32(ranks), losses.cpu().numpy(), n_classes)


def paired_difference(a: Tally, b: Tally) -> tuple[float, float, float]:
    """Top-1 accuracy of `a` less that of `b` on the same images, and its 95 % interval.

    From the spread of the differences image by image, in which what is hard for both networks
    cancels: narrower than the two networks' own intervals suggest.

    Returns:
        difference, low, high; the latter -1 and 1 for a single image, which has no spread.
    """
    assert np.array_equal(a.labels, b.labels), "not the same images"
    differences = a.hits.astype(np.float64) - b.hits
    low, high = mean_interval(differences) or (-1.0, 1.0)
    return float(differences.mean()), low, high


def wilson_interval(n_hits: int, n: int) -> Interval:
    """95 % interval of a share of `n`, within 0 and 1. Source: Wilson 1927."""
    share, z2 = n_hits / n, Z * Z / n
    middle = share + z2 / 2
    half = math.sqrt(z2 * (share * (1 - share) + z2 / 4))
    low, high = (middle - half) / (1 + z2), (middle + half) / (1 + z2)
    return low if n_hits > 0 else 0.0, high if n_hits < n else 1.0  # rounding would miss the ends


def mean_interval(values: np.ndarray) -> Interval | None:
    """95 % normal interval of a mean; None from fewer than two values or if one is not finite."""
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    mean, half = values.mean(), Z * values.std(ddof=1) / math.sqrt(len(values))
    return float(mean - half), float(mean + half)


def _int32(numbers: Tensor) -> np.ndarray:
    return numbers.to("cpu", torch.int32).numpy()


def count_macs(model: nn.Module, example: Tensor) -> tuple[int, int]:
    """Parameters (shared ones once), and multiply-adds for one image.

    Multiply-adds are those of convolutions and matrix products, as PyTorch's own counter has them
    (two floating-point operations each, biases not counted).

    Args:
        model: in eval mode.
        example: one image, (1, C, H, W), on the model's device.
    """
    assert not model.training
    assert len(example) == 1, example.shape
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad(), MultiplyAdds() as counted:
        model(example.clone())
    return n_parameters, counted.total
