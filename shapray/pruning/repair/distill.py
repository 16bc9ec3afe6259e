"""A cut network trained to answer as the whole one does, on the calibration images.

Sources: the answers of a teacher as targets are Hinton et al. 2015, Distilling the Knowledge in a
Neural Network; its inner values as well, Romero et al. 2015, FitNets; many steps on blended images,
with its answers to just these, Beyer et al. 2022, Knowledge distillation: A good teacher is patient
and consistent.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shapray.inputs.lazy import Pixels
from shapray.pruning.repair.augment import blend, look_alike, move
from shapray.pruning.repair.blocks import find_blocks, outputs_of
from shapray.text import one_line

FEWEST_IMAGES = 20  # fewer are learned by heart, however they are moved and blended
BATCH = 32  # images a step; twice as many in half the steps come less near
CHECKS = 12  # on the way, and one before the first step
EXAMINED = 256  # images of a check, of more
TEMPERATURE = 2.0  # of the softmaxes that are compared
BLOCKS = 9.0  # weight of the blocks together; that of the answers is 1
WARM_UP = 0.1  # of the steps: Adam's first ones, with little to go by, would undo a repair


@dataclass(frozen=True)
class Distilled:
    """How it went.

    Attributes:
        steps: those made.
        loss_before, loss_after: Kullback-Leibler divergence of the cut network's answers from the
            whole one's, in nats, on images made of the given ones as those that were trained on;
            the same if no nearer was come and the network has its weights of before.
    """

    steps: int
    loss_before: float
    loss_after: float


def distill(
    whole: nn.Module,
    cut: nn.Module,
    images: Pixels,
    labels: Tensor | None = None,
    *,
    steps: int,
    lr: float = 5e-4,
    batch: int = BATCH,
    seed: int = 0,
    device: str | torch.device = "cpu",
    blocks: Sequence[str] | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Distilled:
    """Train all weights of a cut network, in place, with the whole one as its teacher.

    Adam minimises the Kullback-Leibler divergence of the answers, and what the blocks' outputs
    differ by relative to their size, on images that are shifted, blended and, where the teacher
    says the same of mirrored ones, mirrored by chance: it answers to any image, so a few make many,
    and are not learned by heart. None is held back: a fifth of a few hundred teaches more than it
    tells. How near the network comes is measured on images moved and blended once; on the images as
    they are, one that was fitted to them in another way would seem nearer than it is. The same seed
    gives the same weights on the same hardware.

    Args:
        whole: the network before the cut, in eval mode; left as it is.
        cut: the network after it, in eval mode and left so: its BatchNorms keep their statistics.
        images: (n, channels, height, width) float32, on any device.
        labels: (n,) int64; if given, the cross-entropy is minimised as well, with the same weight
            as the divergence.
        steps: of Adam.
        lr: its largest learning rate: reached after a tenth of the steps, 0 after the last.
        batch: images a step, or all there are if they are fewer.
        seed: of the images chosen, and of what is done to them.
        device: where both networks are.
        blocks: names of modules of both networks whose outputs are compared; None: those that
            `find_blocks` finds.
        progress: called with the step, the number of steps and the loss, whenever that has been
            measured; first with step 0, before anything has changed.
    Raises:
        ValueError: too few images; a network that gives no gradients.
    """
    assert steps > 0
    assert not whole.training
    assert not cut.training
    random = torch.Generator().manual_seed(seed)
    if len(images) < FEWEST_IMAGES:
        raise ValueError(
            f"{len(images)} images are too few to distill with: they would be learned by heart; "
            f"give {FEWEST_IMAGES} or more"
        )
    chosen = torch.randperm(len(images), generator=random)[:EXAMINED]
    examined = images[chosen].to(device)
    mirror = look_alike(whole, examined)
    examined = move(examined, random, mirror)
    exam = _Exam(whole, blend(examined, None, random)[0].split(batch))
    targets = None if labels is None else F.one_hot(labels, exam.right.shape[1]).float().to(device)
    if blocks is None:
        blocks = find_blocks(whole, cut, images[:1].to(device))

    before = copy.deepcopy(cut.state_dict())
    loss_before = loss = exam.loss(cut)
    if progress:
        progress(0, steps, loss)
    with _all_trainable(cut):
        adam = torch.optim.Adam([p for p in cut.parameters() if p.requires_grad], lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda done: _pace(done, steps))
        for step in range(1, steps + 1):
            chosen = torch.randperm(len(images), generator=random)[:batch]
            seen = move(images[chosen].to(device), random, mirror)
            seen, wanted = blend(seen, None if targets is None else targets[chosen], random)
            adam.zero_grad()
            with _why_not():
                _derive(_loss(whole, cut, seen, blocks, wanted))
            adam.step()
            schedule.step()
            if step * CHECKS // steps > (step - 1) * CHECKS // steps:
                loss = exam.loss(cut)
                if progress:
                    progress(step, steps, loss)
    if not loss < loss_before:  # nor where it is no number
        cut.load_state_dict(before)
        loss = loss_before
    return Distilled(steps, loss_before, loss)


def check_trainable(network: nn.Module, image: Tensor) -> None:
    """Raise ValueError for a network that gives no gradients; it is left as it is.

    Args:
        network: in eval mode.
        image: (1, channels, height, width) float32, on its device.
    """
    with torch.enable_grad(), _all_trainable(network), _why_not():
        _derive(network(image.clone()).sum())


def in_words(step: int, steps: int, loss: float) -> str:
    """How far a distillation is, from what `progress` is called with."""
    return f"distill: step {step} of {steps}, loss {loss:.3g}"


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


def _derive(loss: Tensor) -> None:
    if not loss.requires_grad:
        raise ValueError(
            "the network cannot be trained: its outputs have no derivatives; is its forward under "
            "torch.no_grad, or does it detach what it computes?"
        )
    loss.backward()


@contextlib.contextmanager
def _why_not() -> Iterator[None]:
    """What autograd cannot do within the context is a ValueError that says so."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # what the network's forward did not keep, or overwrites
        raise ValueError(f"the network cannot be trained: {one_line(error)}") from error


def _pace(done: int, steps: int) -> float:
    """Share of the largest learning rate after so many steps: up in a line, down in a half wave."""
    rising = (done + 1) / (WARM_UP * steps)
    return min(1.0, rising) * (1 + math.cos(math.pi * done / steps)) / 2


class _Exam:
    """How far answers are from the whole network's, on images that stay the same."""

    def __init__(self, whole: nn.Module, batches: Sequence[Tensor]) -> None:
        self.batches = batches
        with torch.no_grad():
            self.right = self._answers(whole)

    def loss(self, network: nn.Module) -> float:
        """Kullback-Leibler divergence, mean over the images, in nats."""
        with torch.no_grad():
            found = self._answers(network)
        return F.kl_div(found, self.right, log_target=True, reduction="batchmean").item()

    def _answers(self, network: nn.Module) -> Tensor:
        logits = [network(images.clone()) for images in self.batches]
        return torch.cat(logits).double().log_softmax(1)


@contextlib.contextmanager
def _all_trainable(network: nn.Module) -> Iterator[None]:
    parameters = [p for p in network.parameters() if p.is_floating_point()]
    before = [(parameter, parameter.requires_grad) for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, trainable in before:
            parameter.requires_grad_(trainable)
            parameter.grad = None
