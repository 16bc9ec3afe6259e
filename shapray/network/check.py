"""The check that removing is masking."""

import torch
from torch import Tensor, nn

from shapray.network.at_work import at_work
from shapray.network.consumers import mask_consumers
from shapray.network.group import Group
from shapray.network.index_maps import removable
from shapray.network.proof import leak
from shapray.network.surgery import prune_model

TOLERANCE = 1e-4  # of the largest output, in float32


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
        coalition = torch.ones(group.n_units, dtype=torch.bool)
        coalition[units] = False
        with torch.no_grad(), mask_consumers(model, group, coalition):
            masked = model(images.clone())  # it may change its input
        removed = f"with {len(units)} of {group.n_units} units removed"
        pruned = prune_model(model, [group], {group.name: units})
        with torch.no_grad(), at_work(pruned) as where:
            try:
                found = pruned(images.clone())
            except Exception:  # of the user's forward; its words are about sizes
                name, module = where()
                place = f"{name}, a {type(module).__name__}," if name else "its forward"
                return f"{place} does not run {removed}: it is written for all of them"
        if found.shape != masked.shape:
            return (
                f"the pruned network's output is {tuple(found.shape)}, "
                f"not {tuple(masked.shape)}, {removed}"
            )
        if difference := disagreement(found, masked):
            return f"masked and pruned network {difference} {removed}"
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
