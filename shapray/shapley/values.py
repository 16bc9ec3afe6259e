"""Value functions: what the network's outputs for one image are worth, larger = better."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

POOLED_OUTPUTS = 16  # outputs a surrogate models one by one; the rest is pooled


Full = Callable[[], Tensor]  # the full network's outputs for each row, if they are needed


def _log_probability(logits: Tensor, target: Tensor) -> Tensor:
    return logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(1)


def _margin(logits: Tensor, target: Tensor) -> Tensor:
    others = logits.scatter(1, target[:, None], -torch.inf)
    return logits.gather(1, target[:, None])[:, 0] - others.amax(1)


def neg_cross_entropy(logits: Tensor, target: Tensor, full: Full) -> Tensor:
    """log p(label)."""
    return _log_probability(logits, target)


def target_logit(logits: Tensor, target: Tensor, full: Full) -> Tensor:
    """The label's logit."""
    return logits.gather(1, target[:, None])[:, 0]


def logit_margin(logits: Tensor, target: Tensor, full: Full) -> Tensor:
    """The label's logit minus the largest other."""
    return _margin(logits, target)


def target_probability(logits: Tensor, target: Tensor, full: Full) -> Tensor:
    """p(label)."""
    return _log_probability(logits, target).exp()


def top1(logits: Tensor, target: Tensor, full: Full) -> Tensor:
    """1 where the label has the largest logit (the first of several), else 0."""
    return (logits.argmax(1) == target).to(logits.dtype)


def neg_kl_divergence(logits: Tensor, target: Tensor, full: Full) -> Tensor:
    """-KL(p of the full network || p), the network's own answer as the target."""
    log_p = full().log_softmax(1)
    return (log_p.exp() * (logits.log_softmax(1) - log_p)).sum(1)


_FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Full], Tensor]] = {
    function.__name__: function
    for function in (
        neg_cross_entropy,
        target_logit,
        logit_margin,
        target_probability,
        top1,
        neg_kl_divergence,
    )
}
NAMES = tuple(_FUNCTIONS)
WITHOUT_LABELS = frozenset({"neg_kl_divergence"})


@dataclass(frozen=True)
class Value:
    """A value function bound to a set of images.

    Args:
        name: one of `NAMES`.
        labels: (n_images,) int64, or None for unlabelled images.
        full: (n_images, n_outputs) float64, outputs of the full network.
    Raises:
        ValueError: the function needs labels and there are none.
    """

    name: str
    labels: Tensor | None
    full: Tensor

    def __post_init__(self) -> None:
        if self.labels is None and self.name not in WITHOUT_LABELS:
            raise ValueError(
                f"{self.name} needs labels, and these images have none; "
                f"{' and '.join(sorted(WITHOUT_LABELS))} needs none"
            )

    def __call__(self, images: Tensor, outputs: Tensor) -> Tensor:
        """Values of outputs.

        Args:
            images: (n_rows,) int64, the image of each row.
            outputs: (n_rows, n_outputs).
        Returns:
            (n_rows,) in the outputs' precision, float64 if they come in it.
        """
        target = self._targets()[images]
        return _FUNCTIONS[self.name](outputs, target, lambda: self.full[images].to(outputs.dtype))

    def _targets(self) -> Tensor:
        if self.labels is None:
            return self.full.argmax(1)
        return self.labels

    def pooled(self) -> tuple["Value", Callable[[Tensor, Tensor], Tensor]]:
        """The same function on few outputs: the label, the largest ones, the rest as one.

        Outputs that are pooled enter as their log-sum-exp, which leaves cross-entropy and
        probability what they are and changes the others a little.

        Returns:
            the function on pooled outputs, and (images, outputs) -> pooled outputs of
            (n_rows, POOLED_OUTPUTS).
        """
        if self.full.shape[1] <= POOLED_OUTPUTS:
            return self, lambda images, outputs: outputs
        targets = self._targets()
        first = self.full.scatter(1, targets[:, None], torch.inf)
        kept = first.topk(POOLED_OUTPUTS - 1, dim=1).indices  # the label comes first

        def pool(images: Tensor, outputs: Tensor) -> Tensor:
            index = kept[images]
            rest = outputs.scatter(1, index, -torch.inf).logsumexp(1, keepdim=True)
            return torch.cat([outputs.gather(1, index), rest], 1)

        every = torch.arange(len(self.full), device=self.full.device)
        pooled = dataclasses.replace(
            self, labels=torch.zeros_like(targets), full=pool(every, self.full)
        )
        return pooled, pool
