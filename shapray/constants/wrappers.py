"""Networks inside torch.compile, DataParallel and their like."""

from torch import nn

from shapray.constants.exchange import exchange

_DATA_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_WRAPPERS = {"module", "_orig_mod"}  # what data parallelism and torch.compile call what they wrap


def unwrapped(network: nn.Module) -> nn.Module:
    """The network without wrappers around it or its parts, which are changed in place.

    What was compiled in place (`module.compile()`) runs as it was written, too.
    """
    network = _inside(network)
    for child in list(network.modules()):
        if (inside := _inside(child)) is not child:
            exchange(network, child, inside)
    for module in network.modules():
        module._compiled_call_impl = None
    return network


def plain_name(name: str) -> str:
    """A tensor's name without wrappers: ``module.conv._orig_mod.weight`` -> ``conv.weight``."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _inside(module: nn.Module) -> nn.Module:
    while True:
        if isinstance(module, _DATA_PARALLEL):
            module = module.module
        elif isinstance(compiled := module._modules.get("_orig_mod"), nn.Module):
            module = compiled
        else:
            return module
