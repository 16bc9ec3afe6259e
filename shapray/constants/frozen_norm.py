"""BatchNorms whose numbers are buffers, as detection networks freeze them."""

import torch
from torch import Tensor, nn

from shapray.constants.proof import gives, in_float64, outputs_of

_TENSORS = {"weight", "bias", "running_mean", "running_var"}
_EPS = (1e-5, 0.0)  # of classes that keep it nowhere: DETR's, and torchvision's first


def batchnorm_of(frozen: nn.Module) -> nn.BatchNorm2d | None:
    """The BatchNorm2d that does what a FrozenBatchNorm2d does, whosever class that is.

    It is in eval mode, and its weight and bias take no gradients, like the buffers that they were.
    None for a module that is none: it has other tensors, or other outputs.
    """
    tensors = dict(frozen.named_buffers())
    shapes = {tensor.shape for tensor in tensors.values()}
    if tensors.keys() != _TENSORS or len(shapes) != 1 or len(next(iter(shapes))) != 1:
        return None
    if any(True for _ in frozen.parameters()) or any(True for _ in frozen.children()):
        return None
    n_channels = len(tensors["weight"])
    images = torch.randn(2, n_channels, 3, 2, generator=torch.Generator().manual_seed(0))
    right = outputs_of(in_float64(frozen), images)
    given = getattr(frozen, "eps", None)
    for eps in (given,) if isinstance(given, float) else _EPS:
        norm = _batchnorm(tensors, eps)
        if gives(norm, [images], [right]):
            return norm
    return None


def _batchnorm(tensors: dict[str, Tensor], eps: float) -> nn.BatchNorm2d:
    like = tensors["weight"]
    norm = nn.BatchNorm2d(len(like), eps=eps, device=like.device, dtype=like.dtype)
    norm.load_state_dict(tensors, strict=False)  # all but the count of batches
    return norm.eval().requires_grad_(False)
