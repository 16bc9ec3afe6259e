"""A network without some of its units."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from shapray.network.graph import dependency_graph
from shapray.network.group import n_root_units


def prune_model(
    model: nn.Module, example: Tensor, removed: Mapping[str, Sequence[int]]
) -> nn.Module:
    """A deep copy of `model` without some units; `model` itself is left alone.

    Args:
        example: one image, (1, C, H, W), with which the network's graph is traced.
        removed: root module name of a group -> its units to remove, as indices of the original
            network.
    Raises:
        ValueError: a root that is no Conv2d or Linear, indices out of range or twice, all units of
            a group, two groups that share channels, units that cannot go without others.
    """
    removed = {name: sorted(units) for name, units in removed.items() if len(units)}
    modules = dict(model.named_modules())
    for name, units in removed.items():
        root = modules.get(name)
        if not isinstance(root, nn.Conv2d | nn.Linear):
            raise ValueError(f"group '{name}': the network has no Conv2d or Linear of that name")
        n_units = n_root_units(root)
        if len(set(units)) < len(units) or units[0] < 0 or units[-1] >= n_units:
            raise ValueError(f"group '{name}': units to remove must be distinct, in [0, {n_units})")
        if len(units) == n_units:
            raise ValueError(f"group '{name}': all {n_units} units would go; one must stay")

    graph, _ = dependency_graph(model, example)
    pruned = graph.model
    for name, units in removed.items():
        root = pruned.get_submodule(name)
        if n_root_units(root) != n_root_units(modules[name]):
            raise ValueError(f"group '{name}' shares channels with another group of the plan")
        prune_root = graph.get_pruner_of_module(root).prune_out_channels
        group = graph.get_pruning_group(root, prune_root, units)
        coupled = set(group[0].idxs) - set(units)
        if coupled:
            raise ValueError(
                f"group '{name}': removing units {units[:5]} would remove {len(coupled)} others too"
            )
        group.prune()

    # Tracing put the copy in eval mode and made everything require grad; surgery made new tensors.
    for name, module in pruned.named_modules():
        module.training = modules[name].training
    for name, parameter in model.named_parameters():
        pruned.get_parameter(name).requires_grad_(parameter.requires_grad)
    return pruned
