"""The check that removing is masking."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shapray.network.at_work import at_work
from shapray.network.consumers import mask_consumers
from shapray.network.group import Group
from shapray.network.index_maps import removable
from shapray.network.proof import leak
from shapray.network.surgery import prune_model

TOLERANCE = 1e-4  # of the largest output, in float32


def agree(
    model: nn.Module, removed: Sequence[tuple[Group, Sequence[int]]], images: Tensor
) -> str | None:
    """Whether the network with some units masked is the one without them; in words if not.

    Args:
        model: in eval mode, float32.
        removed: groups, and of each the units that go.
        images: (b, C, H, W), on the model's device.
    """
    in_words = ", ".join(f"{len(units)} of {group.n_units}" for group, units in removed)
    in_words = f"with {in_words} units removed"
    with contextlib.ExitStack() as stack, torch.no_grad():
        for group, units in removed:
            coalition = torch.ones(group.n_units, dtype=torch.bool)
            coalition[list(units)] = False
            stack.enter_context(mask_consumers(model, group, coalition))
        masked = model(images.clone())  # it may change its input
    groups = [group for group, _ in removed]
    pruned = prune_model(model, groups, {group.name: units for group, units in removed})
    with torch.no_grad(), at_work(pruned) as where:
        try:
            found = pruned(images.clone())
        except Exception:  # of the user's forward; its words are about sizes
            name, module = where()
            place = f"{name}, a {type(module).__name__}," if name else "its forward"
            return f"{place} does not run {in_words}: it is written for all of them"
    if found.shape != masked.shape:
        return (
            f"the pruned network's output is {tuple(found.shape)}, "
            f"not {tuple(masked.shape)}, {in_words}"
        )
    if difference := disagreement(found, masked):
        return f"masked and pruned network {difference} {in_words}"
    return None


def check_together(
    model: nn.Module, groups: Sequence[Group], images: Tensor, seed: int
) -> str | None:
    """`agree` of many groups that are cut at once, on three random coalitions: if they do, so does
    each of them; if not, which of them does not is for `check_group` to say."""
    random = torch.Generator().manual_seed(seed)
    for share in (0.0, 0.25, 0.5):
        removed = [
            (group, removable(group, torch.randperm(group.n_units, generator=random).tolist()))
            for group in groups
        ]
        removed = [(group, units[: _n_gone(group, share)]) for group, units in removed]
        found = agree(model, removed, images)
        if found is not None:
            return found
    return None


def _n_gone(group: Group, share: float) -> int:
    return min(group.n_units - 1, max(1, round(share * group.n_units)))


def check_group(model: nn.Module, group: Group, images: Tensor, seed: int) -> str | None:
    """Whether the masked and the surgically pruned network agree; the reason if they do not.

    On two random coalitions: without a single unit, and without half of the units; see
    `disagreement`. And on whether its units are seen by its consumers alone, see `proof.leak`.

    Args:
        model: in eval mode, float32.
        images: (b, C, H, W), on the model's device.
    """
    assert group.reason is None, (group.name, group.reason)
    assert not model.training
    order = torch.randperm(group.n_units, generator=torch.Generator().manual_seed(seed)).tolist()
    order = removable(group, order)
    for units in (order[:1], order[: group.n_units // 2]):
        if found := agree(model, [(group, units)], images):
            return found
    return leak(model, group, images[:1])


def disagreement(found: Tensor, right: Tensor, tolerance: float = TOLERANCE) -> str | None:
    """How outputs differ from what they should be, in words; None if they do not.

    The measure is max |found - right| / max |right|, over the outputs of all images; `tolerance` is
    what it may be.
    """
    largest = right.abs().max().item()
    if largest == 0:
        return "cannot be compared: all outputs are 0"
    difference = (found.to(right.device) - right).abs().max().item() / largest
    if difference <= tolerance:  # nan does not
        return None
    return f"differ: relative error {difference:.2g}"
