"""The check that removing is masking."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx, nn

from shapray.network.at_work import at_work
from shapray.network.consumers import mask_consumers
from shapray.network.doubled import in_float64
from shapray.network.group import Group
from shapray.network.index_maps import removable, whole_steps
from shapray.network.proof import leak
from shapray.network.surgery import prune_model

CUT_TOLERANCE = 1e-5  # of the largest output, between a masked and a cut network
TOLERANCE = 1e-4  # the same in float32, between two ways to the same
CUTS, CUTS_IN_BLOCKS = 3, 6  # of all groups at once, that are compared
Cut = Sequence[tuple[Group, Sequence[int]]]
"""Groups, and of each the units that go."""


def agree(model: nn.Module, removed: Cut, images: Tensor) -> str | None:
    """Whether the network with some units masked is the one without them; in words if not.

    What may be rounding, in float32, is looked at again in float64; a network that does not run in
    that is taken at its word up to `TOLERANCE`.

    Args:
        model: in eval mode, float32 or float64.
        removed: groups, and of each the units that go.
        images: (b, C, H, W), on the model's device.
    """
    in_words = ", ".join(f"{len(units)} of {group.n_units}" for group, units in removed)
    in_words = f"with {in_words} units removed"
    masked = masked_outputs(model, removed, images)
    groups = [group for group, _ in removed]
    try:
        units_of = {group.name: units for group, units in removed}
        pruned = prune_model(model, groups, units_of, share=True)
    except Exception:  # a layer that has something else along its channels
        return (
            f"a layer cannot be cut {in_words}: it has tensors that do not lie along its channels"
        )
    # a traced network would print what fails in it
    run = pruned.forward if isinstance(pruned, fx.GraphModule) else pruned
    with torch.no_grad(), at_work(pruned) as where:
        try:
            found: Tensor = run(images.clone())
        except Exception:  # of the user's forward; its words are about sizes
            name, module = where()
            place = f"{name}, a {type(module).__name__}," if name else "its forward"
            return f"{place} does not run {in_words}: it is written for all of them"
    if found.shape != masked.shape:
        return (
            f"the pruned network's output is {tuple(found.shape)}, "
            f"not {tuple(masked.shape)}, {in_words}"
        )
    difference = disagreement(found, masked, CUT_TOLERANCE)
    if difference and images.dtype == torch.float32 and not disagreement(found, masked):
        with torch.no_grad():
            exact = in_float64(model, images)
        return None if exact is None else agree(exact[0], removed, exact[1])
    return difference and f"masked and pruned network {difference} {in_words}"


def masked_outputs(model: nn.Module, removed: Cut, images: Tensor) -> Tensor:
    """What the network makes of images where the readers of some units see none; arguments as of
    `agree`."""
    with contextlib.ExitStack() as stack, torch.no_grad():
        for group, units in removed:
            coalition = torch.ones(group.n_units, dtype=torch.bool)
            coalition[list(units)] = False
            stack.enter_context(mask_consumers(model, group, coalition))
        outputs: Tensor = model(images.clone())  # it may change its input
    return outputs


def check_together(
    model: nn.Module, groups: Sequence[Group], images: Tensor, seed: int
) -> str | None:
    """`agree` of many groups that are cut at once, on three random coalitions; which of them does
    not is for `check_group` to say."""
    return next(
        filter(None, (agree(model, cut, images) for cut in random_cuts(groups, seed))), None
    )


def random_cuts(groups: Sequence[Group], seed: int) -> Iterator[Cut]:
    """Three cuts of many groups at once; more if some are in blocks.

    Each group loses another number of units, up to half of them, and one in four none: a forward
    that is right as long as its halves stay equal is not taken for right. Of blocks equally many
    go, and halves stay equal: there it is the order of what is left that many cuts must show.
    """
    random = torch.Generator().manual_seed(seed)
    for _ in range(CUTS_IN_BLOCKS if any(group.blocks for group in groups) else CUTS):
        removed = []
        for group in groups:
            order = torch.randperm(group.n_units, generator=random).tolist()
            n_gone = int(torch.randint(1, group.n_units // 2 + 1, (), generator=random))
            stays_whole = int(torch.randint(4, (), generator=random)) == 0 and len(groups) > 1
            if group.blocks or not stays_whole:
                removed.append((group, removable(group, order)[: whole_steps(group, n_gone)]))
        yield removed


def check_group(model: nn.Module, group: Group, images: Tensor, seed: int) -> str | None:
    """Whether the masked and the surgically pruned network agree; the reason if they do not.

    On two random coalitions: without a single unit (of each block), and without half of the units;
    see `disagreement`. And on whether its units are seen by its consumers alone, see `proof.leak`.

    Args:
        model: in eval mode, float32.
        images: (b, C, H, W), on the model's device.
    """
    assert group.reason is None, (group.name, group.reason)
    assert not model.training
    order = torch.randperm(group.n_units, generator=torch.Generator().manual_seed(seed)).tolist()
    order = removable(group, order)
    for n_gone in (group.step, whole_steps(group, group.n_units // 2)):
        units = order[:n_gone]
        if found := agree(model, [(group, units)], images):
            return found
    return leak(model, group, images[:1])


def disagreement(found: Tensor, right: Tensor, tolerance: float = TOLERANCE) -> str | None:
    """How outputs differ from what they should be, in words; None if they do not.

    `tolerance` is what the `relative_error` may be.
    """
    if not right.any():
        return "cannot be compared: all outputs are 0"
    difference = relative_error(found, right)
    if difference <= tolerance:  # nan does not
        return None
    return f"differ: relative error {difference:.2g}"


def relative_error(found: Tensor, right: Tensor) -> float:
    """max |found - right| / max |right|, over the outputs of all images."""
    difference = (found.to(right.device) - right).abs().max() / right.abs().max()
    return difference.item()
