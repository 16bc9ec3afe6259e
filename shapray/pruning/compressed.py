"""A network cut and repaired: all steps from a plan to what is saved."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from shapray.config import Prune
from shapray.engine.arithmetic import float32_products
from shapray.engine.trace import fold
from shapray.inputs.lazy import Pixels
from shapray.network.check import agree
from shapray.network.group import Group
from shapray.network.silence import silenced
from shapray.network.surgery import prune_model
from shapray.network.unreached import Settings, drop_unreached
from shapray.pruning.criteria import MEMORY
from shapray.pruning.repair.augment import look_alike, views
from shapray.pruning.repair.batchnorm import batchnorm
from shapray.pruning.repair.distill import distill
from shapray.pruning.repair.least_squares import VIEWS, least_squares
from shapray.pruning.repair.walk import images_that_fit
from shapray.text import some

NOTHING: Settings = {}
COMPARED = 2  # images, on which the cut that is made is compared with the mask


@dataclass(frozen=True)
class Compressed:
    """A smaller network.

    Attributes:
        network: in eval mode.
        dropped: what was set so that it can be trained.
        done: what the repairs did, where that is not plain, a line each.
        notes: what they could not do, and what was dropped, a line each.
    """

    network: nn.Module
    dropped: Settings
    done: tuple[str, ...]
    notes: tuple[str, ...]


def compressed(
    whole: nn.Module,
    groups: Sequence[Group],
    removed: Mapping[str, Sequence[int]],
    repair: Sequence[str],
    images: Pixels,
    labels: Tensor | None,
    prune: Prune,
    seed: int,
    progress: Callable[[int, int, float], None] | None = None,
    n_fitted: int | None = None,
    most: int | None = None,
) -> Compressed:
    """The network without some units, repaired; `whole` is left as it is.

    Args:
        whole: in eval mode.
        groups: those that lose units, at least.
        removed: group -> units.
        repair: what is done, of `prune.repair`.
        images: (n, channels, height, width) float32, the calibration images, on the network's
            device.
        labels: (n,) int64; only read where `prune.distill.labels` asks for it.
        seed: of what is drawn.
        progress: of a distillation; see there.
        n_fitted: images that a fit by least squares may hold the activations of, views of the
            same image counted; None: all images, and views as far as `MEMORY` goes.
        most: bytes that all images' inputs of one BatchNorm may take; see there.
    Raises:
        ValueError: a network that cannot be trained.
    """
    if not any(removed.values()):
        return Compressed(copy.deepcopy(whole), NOTHING, (), ())
    start, done, notes = whole, list[str](), list[str]()
    cut = [(group, removed[group.name]) for group in groups if removed.get(group.name)]
    with float32_products():
        difference = agree(whole, cut, images[:COMPARED])
    if difference is not None:
        notes.append(f"the cut network is not the masked one that was scored: {difference}")
    if "batchnorm" in repair:
        start = silenced(whole, groups, removed)
        batchnorm(start, images, most=most)
    if "least_squares" in repair:
        if n_fitted is None:
            fit = images_that_fit(fold(whole, images[:1]), images[:1], MEMORY)
            n_fitted = max(len(images), fit)
        fitted = images[:n_fitted]
        n_views = min(VIEWS, n_fitted // len(fitted))
        seen = views(fitted, n_views, seed, mirror=look_alike(whole, fitted))
        refitted = least_squares(whole, start, groups, removed, seen, seed)
        start = refitted.network
        if refitted.layers:
            notes += _fewer(len(fitted), len(images), n_views)
        reasons: dict[str, list[str]] = {}
        for layer, reason in refitted.left_out.items():
            reasons.setdefault(reason, []).append(layer)
        for reason, layers in reasons.items():
            notes.append(f"not refitted: {some(layers)}: {reason}")
    network = prune_model(start, groups, removed).eval()
    unreached = drop_unreached(network, start, images[:1])
    if said := str(unreached):
        notes.append(said)
    if "distill" in repair:
        asked = prune.distill
        learned = distill(
            whole,
            network,
            images,
            labels if asked.labels else None,
            steps=asked.steps,
            lr=asked.learning_rate,
            seed=seed,
            device=images.device,
            progress=progress,
        )
        if learned.loss_after < learned.loss_before:
            done.append(
                f"distilled: {learned.steps} steps, loss {learned.loss_before:.4g} -> "
                f"{learned.loss_after:.4g}"
            )
        else:
            done.append(
                f"distilled: {learned.steps} steps came no nearer to the whole network, and were "
                "undone; a lower prune.distill.learning_rate may"
            )
    return Compressed(network, unreached.settings, tuple(done), tuple(notes))


def _fewer(n_fitted: int, n_images: int, n_views: int) -> list[str]:
    """What of the images a fit could not see."""
    why = "as many as the memory holds (cluster.memory_per_worker of a job)"
    if n_fitted < n_images:
        return [f"least_squares: fitted on {n_fitted} of {n_images} images, {why}"]
    if n_views < VIEWS:
        s = "s" * (n_views > 1)
        return [f"least_squares: fitted on {n_views} view{s} of an image, not {VIEWS}, {why}"]
    return []
