"""Weights that are computed from others at every pass: in eval mode they are constants."""

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_Remove = Callable[[nn.Module, str], nn.Module]
_HOOKS: dict[type, tuple[_Remove, str]] = {  # what computes a weight before every pass
    WeightNorm: (remove_weight_norm, "name"),
    SpectralNorm: (remove_spectral_norm, "name"),
    prune.BasePruningMethod: (prune.remove, "_tensor_name"),
}


def end_reparametrisations(network: nn.Module) -> list[str]:
    """Make plain parameters of parametrized weights, changed in place.

    Those of `torch.nn.utils.parametrize`, of the old `weight_norm` and `spectral_norm`, and the
    masks of `torch.nn.utils.prune`.

    Args:
        network: in eval mode, in which no power iteration moves a weight.
    Returns:
        the names of the weights.
    """
    assert not network.training
    ended = []
    with torch.no_grad():
        for path, module in network.named_modules():
            for name, end in list(_reparametrised(module)):
                end()
                ended.append(f"{path}.{name}".removeprefix("."))
    return ended


def _reparametrised(module: nn.Module) -> Iterator[tuple[str, Callable[[], object]]]:
    if parametrize.is_parametrized(module):
        for name in list(module.parametrizations):  # type: ignore[arg-type]
            yield name, _ending(parametrize.remove_parametrizations, module, name)
    for hook in list(module._forward_pre_hooks.values()):
        for kind, (remove, attribute) in _HOOKS.items():
            if isinstance(hook, kind):
                name = getattr(hook, attribute)
                yield name, _ending(remove, module, name)


def _ending(remove: Callable[..., object], module: nn.Module, name: str) -> Callable[[], object]:
    return lambda: remove(module, name)
