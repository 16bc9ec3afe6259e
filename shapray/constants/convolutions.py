"""Convolutions that change their own weight first, or pad by themselves, as plain ones.

Weight standardisation (Qiao et al. 2019) and its scaled form (Brock et al. 2021) compute the same
weight at every pass. It is not the formula that is known here but what the layer's forward
convolves with: that is caught, put into an `nn.Conv2d`, and both are run on images of several
sizes.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from shapray.constants.proof import gives, in_float64, outputs_of


class SamePaddedConv2d(nn.Conv2d):
    """A convolution padded to ceil(size / stride) outputs, more behind than before, as TensorFlow
    does it: how much depends on the image."""

    def forward(self, images: Tensor) -> Tensor:
        padding = list[int]()
        for dim in (1, 0):  # width first
            size, stride = images.shape[2 + dim], self.stride[dim]
            extent = self.dilation[dim] * (self.kernel_size[dim] - 1) + 1
            total = max((-(-size // stride) - 1) * stride + extent - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(images, padding))


def plain_convolution(layer: nn.Module) -> nn.Conv2d | None:
    """The convolution by a constant weight that does what a subclass of `nn.Conv2d` does.

    Its padding is the layer's own, or what the layer pads by itself if that is the same on all
    sides, or "same" in TensorFlow's way.

    Returns:
        None where there is nothing to do or it cannot be had: a plain one, one with hooks, one
        whose weight depends on the image or whose forward does something else, too.
    """
    if not isinstance(layer, nn.Conv2d) or isinstance(layer, SamePaddedConv2d) or _plain(layer):
        return None
    if layer._forward_hooks or layer._forward_pre_hooks:
        return None
    exact, images = in_float64(layer), list(_images(layer))
    with _Catching() as catching:
        right = [outputs_of(exact, batch) for batch in images]
    caught = catching.caught
    if len(caught) != len(images) or not all(map(caught[0].same_numbers, caught)):
        return None
    if caught[0].weight.shape != layer.weight.shape:
        return None
    for candidate in _candidates(layer, exact.weight, caught[0], images[0]):
        if gives(candidate, images, right):
            return candidate
    return None


def _plain(layer: nn.Conv2d) -> bool:
    of_class = type(layer)
    return (
        of_class.forward is nn.Conv2d.forward
        and of_class._conv_forward is nn.Conv2d._conv_forward
        and "forward" not in vars(layer)
    )


def _images(layer: nn.Conv2d) -> Iterator[Tensor]:
    """Noise of sizes that leave different rests when divided by the stride."""
    random = torch.Generator().manual_seed(0)
    extents = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size)]
    for rest in sorted({0, 1, max(layer.stride) - 1}):
        height, width = (
            (extent // stride + 2) * stride + rest for extent, stride in zip(extents, layer.stride)
        )
        yield 3 * torch.randn(2, layer.in_channels, height, width, generator=random)


class _Convolution:
    """A convolution as PyTorch was asked for it."""

    def __init__(self, images: Tensor, weight: Tensor, bias: Tensor | None, rest: Any) -> None:
        self.size = images.shape[2:]
        self.weight, self.bias = weight, bias
        self.stride, self.padding, self.dilation, _, _, self.groups = rest

    def same_numbers(self, other: "_Convolution") -> bool:
        if self.bias is None or other.bias is None:
            return self.bias is other.bias and torch.equal(self.weight, other.weight)
        return torch.equal(self.weight, other.weight) and torch.equal(self.bias, other.bias)


class _Catching(TorchDispatchMode):
    """Keeps the convolutions that are asked for while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.caught: list[_Convolution] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            images, weight, bias, *rest = args
            self.caught.append(_Convolution(images, weight, bias, rest))
        return func(*args, **(kwargs or {}))


def _candidates(
    layer: nn.Conv2d, own_weight: Tensor, found: _Convolution, images: Tensor
) -> Iterator[nn.Conv2d]:
    """Plain convolutions that may do what the layer did to these images."""
    around = [
        own + (size - given) // 2
        for own, size, given in zip(found.padding, found.size, images.shape[2:])
    ]
    yield _made(nn.Conv2d, layer, found, padding=layer.padding, padding_mode=layer.padding_mode)
    yield _made(nn.Conv2d, layer, found, padding=tuple(around))
    if torch.equal(found.weight, own_weight):
        return  # the user's own class is as good as this one
    yield _made(SamePaddedConv2d, layer, found, padding=0)


def _made(
    kind: type[nn.Conv2d], layer: nn.Conv2d, found: _Convolution, **padding: Any
) -> nn.Conv2d:
    like = layer.weight
    made = kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        stride=tuple(found.stride),
        dilation=tuple(found.dilation),
        groups=found.groups,
        bias=found.bias is not None,
        device=like.device,
        dtype=like.dtype,
        **padding,
    )
    with torch.no_grad():
        made.weight.copy_(found.weight)
        if made.bias is not None and found.bias is not None:
            made.bias.copy_(found.bias)
    made.requires_grad_(like.requires_grad)
    return made.train(layer.training)
