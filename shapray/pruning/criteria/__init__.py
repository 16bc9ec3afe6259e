"""The criteria that units can be ranked by beside Shapley values: same groups, same images.

Imports what `pruning` may. Start with `criterion` and the table `CRITERIA` below it.

A file a family: `at_random`, `weights`, `activity` (what is zero), `taylor` (what the loss's
derivatives say) and `jacobian`, both by `gates`; `leave_one_out` is the exact loss of one unit;
`obs` is what the others cannot make up for; `shapley_sampled` is the job's own score without
enumeration.
`inputs` is what they all take.

In all of them larger means more worth keeping, and a unit's channels in all layers that it spans
make one number.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from shapray.engine.arithmetic import float32_products
from shapray.inputs.lazy import Pixels
from shapray.network.group import Group
from shapray.pruning.criteria.activity import apoz
from shapray.pruning.criteria.at_random import at_random
from shapray.pruning.criteria.gates import check_slopes
from shapray.pruning.criteria.inputs import AsScored, Inputs
from shapray.pruning.criteria.jacobian import jacobian
from shapray.pruning.criteria.leave_one_out import leave_one_out
from shapray.pruning.criteria.obs import check_refits, obs
from shapray.pruning.criteria.shapley_sampled import check_scoring, shapley_sampled
from shapray.pruning.criteria.taylor import obd, taylor, taylor_signed
from shapray.pruning.criteria.weights import batchnorm_scale, l1_norm, l2_norm
from shapray.text import some


@dataclass(frozen=True)
class Criterion:
    """How units are ranked, and what that takes.

    Attributes:
        scores: inputs -> group -> (n_units,) float64.
        check: raises what `scores` does for a network that it says nothing of, in little time.
        images: it looks at the images; the others take any.
        at_once: it holds what the network makes of all images at once.
    """

    scores: Callable[[Inputs], dict[str, np.ndarray]]
    check: Callable[[Inputs], object] | None = None
    images: bool = False
    at_once: bool = False


CRITERIA: Mapping[str, Criterion] = {
    "random": Criterion(at_random),
    "l1_norm": Criterion(l1_norm),
    "l2_norm": Criterion(l2_norm),
    "batchnorm_scale": Criterion(batchnorm_scale, batchnorm_scale),
    "apoz": Criterion(apoz, images=True),
    "taylor": Criterion(taylor, check_slopes, images=True),
    "taylor_signed": Criterion(taylor_signed, check_slopes, images=True),
    "obd": Criterion(obd, check_slopes, images=True),
    "jacobian": Criterion(jacobian, check_slopes, images=True),
    "leave_one_out": Criterion(leave_one_out, images=True),
    "obs": Criterion(obs, check_refits, images=True, at_once=True),
    "shapley_sampled": Criterion(shapley_sampled, check_scoring, images=True),
}
MEMORY = 2**32


@float32_products()
def criterion(
    name: str,
    model: nn.Module,
    groups: Sequence[Group],
    images: Pixels,
    labels: Tensor | None,
    seed: int = 0,
    batch: int = 64,
    memory: int = MEMORY,
    as_scored: AsScored | None = None,
) -> dict[str, np.ndarray]:
    """Every unit's worth by one of `CRITERIA`; larger = more worth keeping.

    The same arguments give the same numbers. Sums over images are in float64.

    Args:
        name: one of `CRITERIA`.
        model: in eval mode, float32; left as it is.
        groups: scorable ones (see `find_groups`), none twice.
        images: (n_images, channels, height, width) float32, on any device.
        labels: (n_images,) int64; without them the class the network itself predicts is the label.
        seed: of `random`.
        batch: images that are in the network at once.
        memory: bytes, of the whole process: a criterion that needs more beside the images is none.
        as_scored: how Shapley values are computed; `shapley_sampled` takes it.
    Returns:
        group's name -> (n_units,) float64, in the order of `groups`.
    Raises:
        ValueError: no criterion of that name; one that says nothing about a group or the network;
            a value that is not finite.
    """
    asked = _named(name)
    assert not model.training
    if not groups:
        return {}
    inputs = Inputs(model, groups, images, labels, seed, batch, memory, as_scored)
    scores = asked.scores(inputs)
    for group, values in scores.items():
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise ValueError(
                f"criterion {name}, group {group}: {len(wrong)} of {len(values)} values are not "
                f"finite, those of units {some(wrong.tolist())}; the network's weights or what it "
                "makes of these images are not"
            )
    return scores


def check_criterion(
    name: str,
    model: nn.Module,
    groups: Sequence[Group],
    image: Tensor,
    as_scored: AsScored | None = None,
) -> None:
    """Raise what `criterion` would for a network or group that it says nothing of, in little time.

    Args:
        image: (1, channels, height, width) float32, on the model's device.
    Raises:
        ValueError: as `criterion`'s, but for values that are not finite.
    """
    asked, inputs = _named(name), Inputs(model, groups, image, None, 0, 1, MEMORY, as_scored)
    if groups and asked.check is not None:
        asked.check(inputs)


def _named(name: str) -> Criterion:
    if name not in CRITERIA:
        raise ValueError(f"there is no criterion '{name}'; there are {', '.join(CRITERIA)}")
    return CRITERIA[name]
