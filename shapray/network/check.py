"""The check that removing is masking."""

import torch
import torch.fx
from torch import Tensor, nn

from shapray.network.consumers import mask_consumers
from shapray.network.group import Group
from shapray.network.surgery import prune_model
from shapray.text import one_line

TOLERANCE = 1e-4  # of the largest logit, in float32


def check_group(model: nn.Module, group: Group, images: Tensor, seed: int) -> str | None:
    """Whether the masked and the surgically pruned network agree; the reason if they do not.

    On two random coalitions: without a single unit, and without half of the units. The measure is
    max |masked - pruned| / max |masked| over the logits of all images.

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
                masked = model(images)
            try:
                pruned = prune_model(model, images[:1], {group.name: units})(images)
            except Exception as error:  # a misread network fails in any way; the job goes on
                return f"pruning fails: {one_line(error)}"
        removed = f"with {len(units)} of {group.n_units} units removed"
        if pruned.shape != masked.shape:
            found, right = tuple(pruned.shape), tuple(masked.shape)
            return f"the pruned network's output is {found}, not {right}, {removed}"
        largest = masked.abs().max().item()
        if largest == 0:
            return f"cannot be checked: all logits are 0 {removed}"
        difference = (masked - pruned).abs().max().item() / largest
        if not difference <= TOLERANCE:  # nan fails too
            return f"masked and pruned network differ: relative error {difference:.2g} {removed}"
    return None
