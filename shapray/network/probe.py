"""Whether a network is one that can be scored: logits out, of each image alone, the same each time.

Everything that is computed later rests on that, and nothing computed later would show that it is
not so: values would be those of no image, or of other probabilities than the network's.
"""

import contextlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from shapray.errors import NetworkError
from shapray.network.at_work import at_work
from shapray.network.doubled import in_float64, runs
from shapray.text import one_line

REPEATS = 8  # of the same image
LOOKED_AT = 2  # of the images, among as many strangers
TOLERANCE = 1e-4  # of the largest output, between two ways to the same in float32
REPEAT_TOLERANCE = 1e-6  # between two runs of the same
EXACT_TOLERANCE = 1e-9  # the same in float64, where almost every network runs
PROBABILITY_TOLERANCE = 1e-3  # of the sum of probabilities, so that half precision inside is seen
_LOGITS = "logits of shape (images, classes)"


class ForwardError(NetworkError):
    """The network fails on the images.

    Attributes:
        takes_channels: of the convolution that fails, if it is one.
    """

    def __init__(self, message: str, takes_channels: int | None) -> None:
        self.takes_channels = takes_channels
        super().__init__(message)


def probe(model: nn.Module, images: Tensor) -> int:
    """Run a network on a few images and on some that look like none.

    Args:
        model: in eval mode, on the images' device; left as it is.
        images: (n, C, H, W), a few of those to score.
    Returns:
        the number of its outputs.
    Raises:
        NetworkError: its forward fails (its own words come first, and the module they come from),
            its outputs are no logits, differ from one time to the next, or depend on the other
            images of the batch.
    """
    assert not model.training
    if isinstance(model, torch.jit.ScriptModule):
        raise NetworkError(
            "it is a TorchScript network, whose channels cannot be followed or cut; give the "
            "nn.Module that it was made from"
        )
    images = images.detach()
    for some in (images[:1], images):  # one by itself first: what is said is then about one
        outputs = _forward(model, some)
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(some):
            raise NetworkError(
                f"the network must return {_LOGITS}; for {len(some)} image{'s' * (len(some) > 1)} "
                f"it returns {_in_words(outputs)}"
            )
    if not outputs.is_floating_point():
        raise NetworkError(f"the network must return {_LOGITS}; it returns {outputs.dtype}")
    for wrong, value in ((outputs.isnan(), "NaN"), (outputs == 0, "0")):
        if wrong.all():
            raise NetworkError(
                f"all the network's outputs are {value} for the first {len(images)} images, so "
                "nothing about it can be told"
            )
    _logits(model, images, outputs)
    with torch.no_grad():
        _same_each_time(model, images[:1])
        exact = in_float64(model, images[:LOOKED_AT])
        if exact is not None:
            _each_alone(*exact, EXACT_TOLERANCE)
        else:
            _each_alone(model, images[:LOOKED_AT], TOLERANCE)
    return int(outputs.shape[1])


def _forward(model: nn.Module, images: Tensor) -> Any:
    """What the network makes of a copy of the images, as it may change its input."""
    with torch.no_grad(), contextlib.suppress(Exception):  # asked for its words below
        return model(images.clone())
    with at_work(model) as where, torch.no_grad():
        try:
            return model(images.clone())
        except Exception as error:  # the user's code: whatever it says is the message
            name, module = where()
            place = f"in {name}, a {type(module).__name__}" if name else "in its own forward"
            shape = tuple(images.shape[1:])
            raise ForwardError(
                f"{one_line(error)} ({place}; the images are {shape}: channels, height, width)",
                module.in_channels if isinstance(module, nn.Conv2d) else None,
            ) from error


def _in_words(outputs: Any) -> str:
    if isinstance(outputs, Tensor):
        return f"a tensor of shape {tuple(outputs.shape)}"
    return f"a {type(outputs).__name__}"


def _logits(model: nn.Module, images: Tensor, outputs: Tensor) -> None:
    """Outputs that are probabilities would go through a second softmax."""
    sums = outputs.double().sum(1)
    if (
        outputs.shape[1] > 1
        and outputs.min() >= 0
        and (sums - 1).abs().max() < PROBABILITY_TOLERANCE
    ):
        raise NetworkError(
            "the network's outputs are probabilities (none is negative, and those of an image sum "
            "to 1), not logits; take the softmax off its end (log-softmax may stay)"
        )
    last = _last_operation(model, images)
    if last.startswith(("SigmoidBackward", "SoftmaxBackward")):
        raise NetworkError(
            f"the network ends in a {last.partition('Backward')[0].lower()}: its outputs are "
            "probabilities, not logits; take it off"
        )


def _last_operation(model: nn.Module, images: Tensor) -> str:
    """Name of the operation that made the outputs, as autograd knows it; empty if it does not."""
    with torch.inference_mode(False), torch.enable_grad():
        image = images[:1].detach().clone().requires_grad_(True)
        try:
            outputs = model(image.clone())  # what is given may be changed in place
        except Exception:  # a forward that cannot have gradients
            return ""
    return outputs.grad_fn.name() if outputs.grad_fn is not None else ""


def _strangers(images: Tensor) -> Tensor:
    """Images unlike those given, which may be all alike: noise, and one upside down, inverted."""
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(images[:1].shape, generator=random, dtype=images.dtype).to(images.device)
    return torch.cat([10 * noise, 1 - images[:1].flip(2)])


def _same_each_time(model: nn.Module, image: Tensor) -> None:
    first = model(image.clone())
    for _ in range(REPEATS):
        apart = _apart(model(image.clone()), first)
        if apart > REPEAT_TOLERANCE:
            raise NetworkError(
                f"the network's outputs differ from one time to the next for the same image, by "
                f"{apart:.2g} of the largest, although it is in eval mode (a dropout without "
                "training=self.training, or another random layer?)"
            )


def _each_alone(model: nn.Module, images: Tensor, tolerance: float) -> None:
    strangers = _strangers(images)
    batch = torch.cat([images, strangers]) if runs(model, strangers) else images
    together = model(batch.clone())
    for place in range(len(images)):
        apart = _apart(together[place], model(images[place : place + 1].clone())[0])
        if apart > tolerance:
            raise NetworkError(
                "the network's output for an image depends on the other images of the batch: alone "
                f"and among others they differ by {apart:.2g} of the largest (a statistic over the "
                "batch, such as a BatchNorm without running statistics, or a mean over dimension "
                "0?); every image must be evaluated by itself"
            )


def _apart(found: Tensor, right: Tensor) -> float:
    """Largest difference relative to the largest output; not finite in the same way counts as
    the same, and what is finite once only as infinitely far."""
    same = (found == right) | (found.isnan() & right.isnan())
    if same.all():
        return 0.0
    difference = (found - right).abs()[~same].max().item()
    largest = right.abs()[right.isfinite()].max().item() if right.isfinite().any() else 0.0
    return difference / largest if largest and math.isfinite(difference) else math.inf
