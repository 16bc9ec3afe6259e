"""All constants of a network, put in place."""

import copy
from collections import defaultdict

from torch import Tensor, nn

from shapray.constants.convolutions import plain_convolution
from shapray.constants.exchange import exchange
from shapray.constants.frozen_norm import batchnorm_of
from shapray.constants.reparametrised import end_reparametrisations
from shapray.text import some


def put_in_place(network: nn.Module) -> list[str]:
    """Make plain layers of those that hold their constants in another form, changed in place.

    Args:
        network: in eval mode; its outputs stay as they are.
    Returns:
        what was done, in words, a line each.
    """
    done = []
    if ended := end_reparametrisations(network):
        done.append(f"computed at every pass before, a plain parameter now: {some(ended)}")
    exchanged = defaultdict[str, list[str]](list)
    for name, module in list(network.named_modules()):
        plain = batchnorm_of(module) or plain_convolution(module)
        if name and plain is not None:
            exchange(network, module, plain)
            exchanged[f"{type(module).__name__} -> {type(plain).__name__}"].append(name)
    done += [f"the same by a plain layer, {kinds}: {some(of)}" for kinds, of in exchanged.items()]
    return done


def copied(network: nn.Module) -> nn.Module:
    """A deep copy, also of a network that keeps computed weights, which PyTorch does not copy."""
    computed = {
        id(value): value.detach().clone()
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(network, computed)
