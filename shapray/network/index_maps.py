"""Which channels of the original network are left in the pruned one, layer by layer."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from shapray.network.group import CONSUMERS, WRITERS, Channels, Group, Role


@dataclass(frozen=True)
class Kept:
    """What is left of a module, or of a parameter that is none's of these: indices of the original
    network, in the pruned network's order.

    Channels of a convolution or a norm, features of a linear layer, entries of a parameter. Where
    inputs and outputs are the same (a norm, a parameter) both are given.
    """

    outputs: tuple[int, ...] | None
    """None: all are kept."""
    inputs: tuple[int, ...] | None
    """None: all are kept."""


def units_left(n_units: int, removed: Iterable[int]) -> list[int]:
    """Of a group that has been cut, what its units 0, 1, ... are in the whole network.

    Args:
        n_units: of the group in the whole network.
        removed: units of the whole network.
    """
    gone = set(removed)
    return [unit for unit in range(n_units) if unit not in gone]


def kept_channels(
    model: nn.Module, groups: Sequence[Group], removed: Mapping[str, Sequence[int]]
) -> dict[str, Kept]:
    """The old channels behind the new ones, for the modules and parameters that lose some.

    Args:
        model: the whole network.
        groups: from `find_groups`; those of `removed` among them.
        removed: group -> its units to remove.
    Returns:
        by module; by the full name of a parameter that is no convolution's, linear layer's or
        norm's.
    Raises:
        ValueError: there is no such group; units that it does not have, or twice; all of them.
    """
    check_removed(groups, removed)
    outputs = channels_left(groups, removed, WRITERS)
    inputs = channels_left(groups, removed, CONSUMERS)
    parameters = channels_left(groups, removed, _parameters)
    for name, left in [*outputs.items(), *inputs.items()]:
        if not left.any():
            raise ValueError(f"all channels of {name} would go; one must stay")
    for name, left in outputs.items():
        if name not in inputs and (passed := _passed_on(model, name, left)) is not None:
            inputs[name] = passed
    kept = {
        name: Kept(_indices(outputs.get(name)), _indices(inputs.get(name)))
        for name in dict.fromkeys([*outputs, *inputs])
    } | {name: Kept(_indices(left), _indices(left)) for name, left in parameters.items()}
    return {name: found for name, found in kept.items() if found != Kept(None, None)}


def channels_left(
    groups: Sequence[Group], removed: Mapping[str, Sequence[int]], role: Role
) -> dict[str, Tensor]:
    """Of the channels of layers that lose some, which ones stay.

    Args:
        role: of the layers, such as `CONSUMERS`: what they read; `WRITERS`: what they put out.
    Returns:
        layer -> (n_channels,) bool.
    """
    left: dict[str, Tensor] = {}
    for group in groups:
        gone = torch.tensor(sorted(removed.get(group.name, ())), dtype=torch.int64)
        for layer in role(group) if len(gone) else ():
            stays = ~torch.isin(torch.tensor(layer.unit_of_channel), gone)
            before = left.get(layer.module)
            left[layer.module] = stays if before is None else before & stays
    return left


def _parameters(group: Group) -> tuple[Channels, ...]:
    return tuple(Channels(p.name, p.unit_of_index) for p in group.parameters)


def check_removed(groups: Sequence[Group], removed: Mapping[str, Sequence[int]]) -> None:
    """Raise as `kept_channels` does for what cannot be removed."""
    by_name = {group.name: group for group in groups}
    for name, units in removed.items():
        if not len(units):
            continue
        if name not in by_name:
            raise ValueError(
                f"group '{name}': the network has none of that name; it has {', '.join(by_name)}"
            )
        n_units = by_name[name].n_units
        if len(set(units)) < len(units) or min(units) < 0 or max(units) >= n_units:
            raise ValueError(f"group '{name}': units to remove must be distinct, in [0, {n_units})")
        if len(units) == n_units:
            raise ValueError(f"group '{name}': all {n_units} units would go; one must stay")
        _check_blocks(by_name[name], units)
        if len(removable(by_name[name], units)) < len(units):
            raise ValueError(
                f"group '{name}': the units to remove are all that some layer of its "
                f"{', '.join(by_name[name].modules)} has; one must stay"
            )


def removable(group: Group, order: Sequence[int]) -> list[int]:
    """Of units in the order in which they would go, those that can, in the order in which they do:
    the first `group.step` together, then the next.

    Every layer keeps a channel: of a stream that gets wider, some layers have a few of the units
    only. Where there are blocks, each loses the first of its own at the first step, and so on.
    """
    layers = [set(layer.unit_of_channel) for layer in (*group.writers, *group.consumers)]
    layers.append(set(range(group.n_units)))
    found: list[int] = []
    for together in _steps(group, order):
        if not any(left and left.issubset(together) for left in layers):
            found.extend(together)
            for left in layers:
                left.difference_update(together)
    return found


def whole_steps(group: Group, n: int) -> int:
    """How many units go where about `n` would: whole steps, at least one."""
    return max(1, n // group.step) * group.step


def _steps(group: Group, order: Sequence[int]) -> Iterable[tuple[int, ...]]:
    """Units that go together: one alone, or one of each block, in the order within each."""
    if not group.blocks:
        return ((unit,) for unit in order)
    of_block: dict[int, list[int]] = {block: [] for block in sorted(set(group.blocks))}
    for unit in order:
        of_block[group.blocks[unit]].append(unit)
    return zip(*of_block.values())


def _check_blocks(group: Group, units: Sequence[int]) -> None:
    """Raise ValueError unless equally many units of every block go."""
    gone = Counter(group.blocks[unit] for unit in units) if group.blocks else Counter()
    counts = {block: gone[block] for block in group.blocks}
    if len(set(counts.values())) > 1:
        most, least = (choose(counts, key=counts.__getitem__) for choose in (max, min))
        raise ValueError(
            f"group '{group.name}': a cut takes equally many of each of its {group.step} blocks, "
            f"since convolutions in groups read or make them; of the {len(units)} units to remove "
            f"{counts[most]} are in block {most} and {counts[least]} in block {least}; "
            f"{sorted(removable(group, range(group.n_units))[: group.step])} would do"
        )


def _passed_on(model: nn.Module, name: str, outputs: Tensor) -> Tensor | None:
    """Inputs that go with a module's outputs; None where they do not."""
    module = model.get_submodule(name)
    if isinstance(module, nn.Linear):
        return None
    if isinstance(module, _ConvNd):
        if module.groups == 1:
            return None
        of_group = outputs.view(module.groups, -1).any(1)
        return of_group.repeat_interleave(module.in_channels // module.groups)
    return outputs


def _indices(left: Tensor | None) -> tuple[int, ...] | None:
    if left is None or bool(left.all()):
        return None
    return tuple(left.nonzero().flatten().tolist())
