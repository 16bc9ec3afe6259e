"""The statistics of every BatchNorm, taken anew on the calibration images."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from shapray.engine.arithmetic import float32_products
from shapray.inputs.lazy import Pixels

LARGEST = 2**30  # bytes


@float32_products()
def batchnorm(
    cut: nn.Module,
    images: Pixels,
    which: Tensor | None = None,
    *,
    batch: int = 64,
    most: int | None = None,
) -> int:
    """Set mean and variance of every BatchNorm to those of its inputs, in place.

    In the order of the data: what is measured at a layer is what reaches it when all layers before
    it have their new statistics. Over all images and positions at once; the variance with n - 1, as
    PyTorch keeps it. One pass over the images if they fit in memory together, otherwise one for
    each BatchNorm, up to there.

    BatchNorms without running statistics stay as they are, and those that are called more than once
    for an image, which have no order.

    Args:
        cut: in eval mode, and left so; its weights stay.
        images: (n, channels, height, width) float32, on the network's device.
        which: (m,) int64, those that count; None: all.
        batch: images at once where not all are.
        most: bytes that all images' inputs of one BatchNorm may take to be there at once; `LARGEST`
            unless told otherwise.
    Returns:
        how many BatchNorms have new statistics.
    """
    assert not cut.training
    which = torch.arange(len(images)) if which is None else which
    with torch.inference_mode():
        norms, largest = _survey(cut, images[:1])
        if largest * len(which) <= (LARGEST if most is None else most):
            with _before([*norms], lambda norm, inputs: _Moments().add(inputs).write(norm)):
                cut(images[which])  # a copy: a network may change its input
        else:
            for norm in norms:
                _of_inputs(norm, cut, (images[part] for part in which.split(batch))).write(norm)
    return len(norms)


def _survey(cut: nn.Module, image: Tensor) -> tuple[list[_BatchNorm], int]:
    """The BatchNorms to renew, in the order of their calls; bytes of an image's largest input."""
    candidates = [
        module
        for module in cut.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    calls: list[_BatchNorm] = []
    sizes = [0]

    def note(norm: _BatchNorm, inputs: Tensor) -> None:
        calls.append(norm)
        sizes.append(inputs.nbytes)

    with _before(candidates, note):
        cut(image.clone())
    return [norm for norm in calls if calls.count(norm) == 1], max(sizes)


def _of_inputs(norm: _BatchNorm, cut: nn.Module, batches: Iterable[Tensor]) -> "_Moments":
    moments = _Moments()

    def take(_: _BatchNorm, inputs: Tensor) -> None:
        moments.add(inputs)
        raise _Enough

    with _before([norm], take):
        for images in batches:
            with contextlib.suppress(_Enough):
                cut(images)
    return moments


class _Enough(Exception):
    """Ends a forward pass where nothing behind is needed."""


@contextlib.contextmanager
def _before(norms: list[_BatchNorm], do: Callable[[_BatchNorm, Tensor], None]) -> Iterator[None]:
    """Does something with each BatchNorm and its inputs before it is called."""

    def hook(norm: nn.Module, args: tuple, kwargs: dict) -> None:
        assert isinstance(norm, _BatchNorm)
        do(norm, args[0] if args else kwargs["input"])

    handles = [norm.register_forward_pre_hook(hook, with_kwargs=True) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Moments:
    """Count, mean and squared deviations of every channel, in float64, over batches."""

    def __init__(self) -> None:
        self.n, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, inputs: Tensor) -> "_Moments":
        """Take in (n, channels, ...)."""
        for image in inputs:  # one by one, as float64 takes twice the memory
            x = image.double().flatten(1) if image.ndim > 1 else image.double()[:, None]
            mean, n = x.mean(1), x.shape[1]
            squares = (x - mean[:, None]).square().sum(1)
            apart, total = mean - self.mean, self.n + n
            self.squares = self.squares + squares + apart.square() * (self.n * n / total)
            self.mean = self.mean + apart * (n / total)
            self.n = total
        return self

    def write(self, norm: _BatchNorm) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(self.mean)
        norm.running_var.copy_(self.squares / max(1, self.n - 1))
