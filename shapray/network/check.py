"""The check that removing is masking."""

import torch
import torch.fx
from torch import Tensor, nn

from shapray.network.consumers import mask_consumers
from shapray.network.group import Group
from shapray.network.surgery import prune_model
from shapray.text import one_line

TOLERANCE = 1e-4  # of the largest output, in float32


def check_group(model: nn.Module, group: Group, images: Tensor, seed: int) -> str | None:
    """Whether the masked and the surgically pruned network agree; the reason if they do not.

    On two random coalitions: without a single unit, and without half of the units; see
    `disagreement`.

    Args:
        model: in eval mode, float32.
        images: (b, C, H, W), on the model's device.
    """
    assert group.reason is None, (group.name, group.reason)
    assert not model.training
    order = torch.randperm(group.n_units, generator=torch.Generator().manual_seed(seed)).tolist()
    for units in (order[:1], order[: group.n_units // 2]):
        coalition = torch.ones(group.n_units, dtype=torch.bool)
        coalition[units] = False
        with torch.no_grad():
            with mask_consumers(model, group, coalition):
                masked = model(images.clone())  # it may change its input
            try:
                pruned = prune_model(model, images[:1], {group.name: units})(images.clone())
            except Exception as error:  # a misread network fails in any way; the job goes on
                return f"pruning fails: {one_line(error)}"
        removed = f"with {len(units)} of {group.n_units} units removed"
        if pruned.shape != masked.shape:
            return (
                f"the pruned network's output is {tuple(pruned.shape)}, "
                f"not {tuple(masked.shape)}, {removed}"
            )
        if found := disagreement(pruned, masked):
            return f"masked and pruned network {found} {removed}"
    return None


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
