"""A network cut and repaired: all steps from a plan to what is saved."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from shapray.config import Prune
from shapray.engine.trace import fold
from shapray.inputs.lazy import Pixels
from shapray.network.group import Group
from shapray.network.silence import silenced
from shapray.network.surgery import prune_model
from shapray.network.unreached import Settings, drop_unreached
from shapray.pruning.repair.augment import views
from shapray.pruning.repair.batchnorm import batchnorm
from shapray.pruning.repair.distill import distill
from shapray.pruning.repair.least_squares import VIEWS, least_squares
from shapray.pruning.repair.walk import images_that_fit
from shapray.text import some

NOTHING: Settings = {}
ROOM = 2**32  # bytes, of a process whose memory nobody has set a limit to


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
            same image counted; None: all images, and views as far as `ROOM` goes.
        most: bytes that all images' inputs of one BatchNorm may take; see there.
    Raises:
        ValueError: a network that cannot be trained.
    """
    if not any(removed.values()):
        return Compressed(copy.deepcopy(whole), NOTHING, (), ())
    start, done, notes = whole, list[str](), list[str]()
    if "batchnorm" in repair:
        start = silenced(whole, groups, removed)
        batchnorm(start, images, most=most)
    if "least_squares" in repair:
        if n_fitted is None:
            n_fitted = max(len(images), images_that_fit(fold(whole, images[:1]), images[:1], ROOM))
        fitted = images[:n_fitted]
        n_views = min(VIEWS, n_fitted // len(fitted))
        if len(fitted) < len(images):
            notes.append(
                f"least_squares: fitted on {len(fitted)} of {len(images)} images, as many as the "
                "memory of a worker holds (cluster.memory_per_worker)"
            )
        seen = views(fitted, n_views, seed)
        refitted = least_squares(whole, start, groups, removed, seen, seed)
        start = refitted.network
        reasons: dict[str, list[str]] = {}
        for layer, reason in refitted.left_out.items():
            reasons.setdefault(reason, []).append(layer)
        for reason, layers in reasons.items():
            notes.append(f"not refitted: {some(layers)}: {reason}")
    network = prune_model(start, images[:1], removed).eval()
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
