"""How good and how big a network is."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Tally:
    """Sums over images; add tallies of parts to get that of the whole."""

    n: int
    n_correct: int
    loss_sum: float
    """Cross-entropy in nats, summed."""

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.n + other.n, self.n_correct + other.n_correct, self.loss_sum + other.loss_sum
        )

    @property
    def top1(self) -> float:
        """Share of images whose largest logit is the label's."""
        return self.n_correct / self.n

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / self.n


def tally(
    model: nn.Module, images: Tensor, labels: Tensor, device: str | torch.device = "cpu"
) -> Tally:
    """Top-1 and cross-entropy of one batch.

    The logits are the network's own (float32); the loss is taken and summed in float64.

    Args:
        model: in eval mode, on `device`.
        images: (n, C, H, W) float32, on any device.
        labels: (n,) int64, on any device.
    """
    assert not model.training
    assert len(images) == len(labels), (len(images), len(labels))
    with torch.inference_mode():
        logits = model(images.to(device, copy=True))
        labels = labels.to(device)
        loss = nn.functional.cross_entropy(logits.double(), labels, reduction="sum")
        n_correct = (logits.argmax(dim=1) == labels).sum()
    return Tally(len(images), int(n_correct), float(loss))


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
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example.clone())
    return n_parameters, counter.get_total_flops() // 2
