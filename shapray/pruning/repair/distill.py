"""A cut network trained to answer as the whole one does, on the calibration images.

Source: the answers of a teacher as targets are Hinton et al. 2015, Distilling the Knowledge in a
Neural Network; its inner values as well, Romero et al. 2015, FitNets.
"""

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shapray.inputs.lazy import Pixels
from shapray.pruning.repair.augment import blend, move
from shapray.pruning.repair.blocks import find_blocks, outputs_of
from shapray.text import one_line

FEWEST_IMAGES = 20  # a fifth is held back, and the rest must be a batch
BATCH = 64  # images of a step, unless told otherwise
HELD_BACK = 5  # every so many images, one
CHECKS = 12  # of the held-back images on the way, and one before the first step
TEMPERATURE = 2.0  # of the softmaxes that are compared
BLOCKS = 9.0  # weight of the blocks together; that of the answers is 1
MEMORY = 0.98  # of the running mean of the weights, a step
WARM_UP = 0.1  # of the steps: Adam's first ones, with little to go by, would undo a repair


@dataclass(frozen=True)
class Distilled:
    """How it went.

    Attributes:
        steps: those made.
        best_step: after which the weights, in the mean over the steps before, did best on the
            held-back images: the network has these now; 0 if none did better than the first.
        loss_before, loss_after: Kullback-Leibler divergence of the cut network's answers from the
            whole one's, on the held-back images, in nats.
        seconds: it took.
    """

    steps: int
    best_step: int
    loss_before: float
    loss_after: float
    seconds: float


def distill(
    whole: nn.Module,
    cut: nn.Module,
    images: Pixels,
    labels: Tensor | None = None,
    *,
    steps: int,
    lr: float = 1e-3,
    batch: int = BATCH,
    seed: int = 0,
    device: str | torch.device = "cpu",
    blocks: Sequence[str] | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Distilled:
    """Train all weights of a cut network, in place, with the whole one as its teacher.

    Adam minimises the Kullback-Leibler divergence of the answers, and what the blocks' outputs
    differ by relative to their size, on images that are shifted, mirrored and blended by chance. A
    fifth of the images takes no part: every so often it is measured on them how well the network
    does with a running mean of its weights, and the best weights stay, perhaps the first. The same
    seed gives the same weights on the same hardware.

    Args:
        whole: the network before the cut, in eval mode; left as it is.
        cut: the network after it, in eval mode and left so: its BatchNorms keep their statistics.
        images: (n, channels, height, width) float32, on any device.
        labels: (n,) int64; if given, the cross-entropy is minimised as well, with the same weight
            as the divergence, and no image is mirrored, since a mirrored 2 is no 2.
        steps: of Adam.
        lr: its largest learning rate: reached after a tenth of the steps, 0 after the last.
        batch: images a step, or all there are if they are fewer.
        seed: of the images held back and chosen, and of what is done to them.
        device: where both networks are.
        blocks: names of modules of both networks whose outputs are compared; None: those that
            `find_blocks` finds.
        progress: called with the step, the number of steps and the loss on the held-back images,
            whenever that has been measured; first with step 0, before anything has changed.
    Raises:
        ValueError: too few images; a network that gives no gradients.
    """
    assert steps > 0
    assert not whole.training
    assert not cut.training
    if len(images) < FEWEST_IMAGES:
        raise ValueError(
            f"{len(images)} images are too few to distill with: a fifth is held back to tell which "
            f"weights are best, and the others must be a batch; give {FEWEST_IMAGES} or more"
        )
    began = time.monotonic()
    random = torch.Generator().manual_seed(seed)
    held_back, taught = parted(len(images), seed)
    exam = _Exam(whole, images, held_back.split(batch), device)
    targets = None if labels is None else F.one_hot(labels, exam.right.shape[1]).float().to(device)
    if blocks is None:
        blocks = find_blocks(whole, cut, images[:1].to(device))

    average, best = copy.deepcopy(cut), copy.deepcopy(cut)
    loss_before = best_loss = exam.loss(cut)
    best_step = 0
    if progress:
        progress(0, steps, loss_before)
    with _all_trainable(cut):
        adam = torch.optim.Adam(cut.parameters(), lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda done: _pace(done, steps))
        for step in range(1, steps + 1):
            chosen = taught[torch.randperm(len(taught), generator=random)[:batch]]
            seen = move(images[chosen].to(device), random, mirror=labels is None)
            seen, wanted = blend(seen, None if targets is None else targets[chosen], random)
            loss = _loss(whole, cut, seen, blocks, wanted)
            adam.zero_grad()
            _backward(loss)
            adam.step()
            schedule.step()
            _approach(average, cut, max(1 - MEMORY, 1 / step))
            if step * CHECKS // steps == (step - 1) * CHECKS // steps:
                continue
            found = exam.loss(average)
            if found < best_loss:
                best_step, best_loss = step, found
                best.load_state_dict(average.state_dict())
            if progress:
                progress(step, steps, found)
    cut.load_state_dict(best.state_dict())
    return Distilled(steps, best_step, loss_before, best_loss, time.monotonic() - began)


def parted(n_images: int, seed: int) -> tuple[Tensor, Tensor]:
    """The images that are held back, and those that are taught: their numbers, (n,) int64.

    A repair before the distillation may see the latter only: of images that it has been fitted to,
    the network it made seems better than any that comes of training.
    """
    order = torch.randperm(n_images, generator=torch.Generator().manual_seed(seed))
    n_held_back = n_images // HELD_BACK
    return order[:n_held_back], order[n_held_back:]


def _loss(
    whole: nn.Module, cut: nn.Module, images: Tensor, blocks: Sequence[str], targets: Tensor | None
) -> Tensor:
    """What is minimised: of the answers, of the blocks, and of the targets if there are any."""
    with torch.no_grad(), outputs_of(whole, blocks) as right:
        answers = whole(images.clone()).div(TEMPERATURE).log_softmax(1)
    with outputs_of(cut, blocks) as found:
        logits = cut(images.clone())
    softened = logits.div(TEMPERATURE).log_softmax(1)
    # times the temperature squared, so that the gradients' size does not depend on it
    loss = TEMPERATURE**2 * F.kl_div(softened, answers, log_target=True, reduction="batchmean")
    for name in blocks:
        (block,), (target,) = found[name], right[name]
        size = target.square().mean().clamp(min=torch.finfo(target.dtype).tiny)
        loss = loss + BLOCKS * F.mse_loss(block, target) / size / len(blocks)
    if targets is not None:
        loss = loss + F.cross_entropy(logits, targets)
    return loss


def _backward(loss: Tensor) -> None:
    try:
        loss.backward()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # what the network's forward did not keep, or did without
        raise ValueError(f"the network cannot be trained: {one_line(error)}") from error


def _pace(done: int, steps: int) -> float:
    """Share of the largest learning rate after so many steps: up in a line, down in a half wave."""
    rising = (done + 1) / (WARM_UP * steps)
    return min(1.0, rising) * (1 + math.cos(math.pi * done / steps)) / 2


class _Exam:
    """How far answers are from the whole network's, on images that no step is made with."""

    def __init__(
        self,
        whole: nn.Module,
        images: Pixels,
        batches: Sequence[Tensor],
        device: str | torch.device,
    ) -> None:
        self.images, self.batches, self.device = images, batches, device
        with torch.no_grad():
            self.right = self._answers(whole)

    def loss(self, network: nn.Module) -> float:
        """Kullback-Leibler divergence, mean over the images, in nats."""
        with torch.no_grad():
            found = self._answers(network)
        return F.kl_div(found, self.right, log_target=True, reduction="batchmean").item()

    def _answers(self, network: nn.Module) -> Tensor:
        logits = [network(self.images[batch].to(self.device)) for batch in self.batches]
        return torch.cat(logits).double().log_softmax(1)


def _approach(network: nn.Module, other: nn.Module, share: float) -> None:
    """Move the weights of one network that much of the way to another's."""
    with torch.no_grad():
        for weight, goal in zip(network.parameters(), other.parameters(), strict=True):
            weight.lerp_(goal, share)


@contextlib.contextmanager
def _all_trainable(network: nn.Module) -> Iterator[None]:
    before = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        network.requires_grad_(True)
        yield
    finally:
        for parameter, trainable in before:
            parameter.requires_grad_(trainable)
            parameter.grad = None
