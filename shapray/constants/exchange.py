"""One module in another's place."""

from torch import nn


def exchange(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` under every name that `old` has in the network; changed in place."""
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):  # named_children leaves out second names
            if child is old:
                setattr(parent, name, new)
