"""The public functions behind the scores: plan a cut, make it, repair it, or all at once."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from shapray.api import Scores, like, score
from shapray.arguments import (
    about,
    kind_of,
    labels_of,
    network_of,
    pixels_of,
    scorable,
    section_of,
)
from shapray.config import Cluster, Prune, Score
from shapray.config.prune import TARGETS
from shapray.driver.console import PlainConsole
from shapray.engine.trace import fold
from shapray.network.check import check_group
from shapray.network.find import find_groups
from shapray.network.group import Group
from shapray.network.probe import probe
from shapray.network.surgery import prune_model
from shapray.network.unreached import drop_unreached
from shapray.pruning.compressed import Compressed, compressed
from shapray.pruning.criteria import criterion
from shapray.pruning.cuts import Chooser
from shapray.pruning.evaluate import count_macs
from shapray.pruning.ranking import Ranking, needed_criteria, rankings
from shapray.pruning.repair.curves import CURVE_IMAGES, loss_curves, shuffled
from shapray.pruning.repair.distill import in_words
from shapray.pruning.sizes import Sizes

CHOOSING = (
    "macs",
    "parameters",
    "allocation",
    "rank_by",
    "per_multiply_add",
    "min_units",
    "round_to",
    "protect",
    "repair",
)  # keys of a plan beside its ratio
REPAIRING = ("repair", "distill")  # keys of a repair


def plan(
    scores: Scores,
    ratio: float | None = None,
    *,
    model: nn.Module | None = None,
    images: Tensor | None = None,
    labels: Tensor | Sequence[int] | None = None,
    **settings: Any,
) -> dict[str, list[int]]:
    """The units to remove.

    Args:
        scores: of the network to be cut.
        ratio: share of the units to remove; 0.3 if nothing says how small the network gets.
        model: the network; needed for all but a ratio of the units by rank.
        images, labels: that it was scored on; needed where the allocation is measured, and by
            criteria that look at images.
        **settings: keys of the job file's `prune` section that choose units, by their names:
            `macs` or `parameters` instead of a ratio, `allocation` ("measured" with a network and
            images, else "global", unless told otherwise) and for it `repair` (what will be done
            afterwards), `rank_by`, `per_multiply_add`, `min_units`, `round_to`, `protect`.
    Returns:
        group -> units to remove, ascending; every scored group, some with none.
    Raises:
        ValueError: an argument is wrong; names it.
    """
    _known(settings, CHOOSING)
    given = settings | ({} if ratio is None else {"ratio": ratio})
    given = {"allocation": "global" if model is None or images is None else "measured"} | given
    asked = section_of(Prune, given | {"criteria": []})
    key, share = asked.target
    table = scores.scores
    names = list(dict.fromkeys(table["group"].to_pylist()))
    by_rank = key == "ratio" and asked.allocation != "measured" and not asked.per_multiply_add
    if model is None or images is None:
        if by_rank and not needed_criteria(asked):
            [ranking] = rankings(table, asked, {})
            return _chosen(asked, ranking, None, {})
        raise ValueError(
            f"model, images: both are needed for {key}: {share}, allocation: {asked.allocation}, "
            f"rank_by: {', '.join(asked.rank_by)}; a ratio of the units by their scores needs none"
        )
    whole, pixels = scorable(model), pixels_of(images)
    groups = find_groups(whole, pixels[:1])
    sizes = Sizes(whole, groups, pixels[:1])
    scored = _named(groups, names)
    table = _with_criteria(table, whole, scored, pixels, labels, asked)
    [ranking] = rankings(table, asked, {n: sizes.macs_of_a_unit(n) for n in names})
    losses, repaired = {}, "least_squares" in asked.repair
    some = pixels[shuffled(len(pixels))[:CURVE_IMAGES]]
    folded = fold(whole, pixels[:1])
    for group in scored if asked.allocation == "measured" else ():
        order = {ranking.name: ranking.orders[group.name]}
        of_group = loss_curves(whole, group, order, some, repaired, folded)
        losses[group.name] = of_group[ranking.name]
    return _chosen(asked, ranking, sizes, losses)


def _chosen(
    asked: Prune, ranking: Ranking, sizes: Sizes | None, losses: Mapping[str, Sequence[float]]
) -> dict[str, list[int]]:
    n_units = {group: len(values) for group, values in ranking.scores.items()}
    chooser = Chooser(asked, n_units, sizes)
    chooser.check()
    return chooser.choose(ranking, {ranking.name: losses}, *asked.target)


def prune(model: nn.Module, cut: Mapping[str, Sequence[int]], example: Tensor) -> nn.Module:
    """A copy of a network without some of its units; the network itself is left as it is.

    It can be trained. Auxiliary heads that only training mode calls are dropped, with a warning, if
    what they read has been cut.

    Args:
        model: the network that was scored.
        cut: group -> units to remove, from `plan` or of your own.
        example: one image, (1, channels, height, width), with which the network is traced.
    Raises:
        ValueError: no such group, one that `score` excludes, units out of range or twice, all units
            of a group, or units that cannot go without others.
    """
    if not isinstance(example, Tensor) or example.ndim != 4 or len(example) != 1:
        raise ValueError(
            f"example: one image (1, channels, height, width) is needed, found {kind_of(example)}; "
            "images[:1] is one"
        )
    network = network_of(model)
    _check_cut(scorable(network), cut, pixels_of(example))
    own = example.to(like(network))
    pruned = about("cut", lambda: prune_model(network, own, cut))
    if said := str(drop_unreached(pruned, network, own)):
        warnings.warn(said, stacklevel=2)
    return pruned


def repair(
    model: nn.Module,
    cut: Mapping[str, Sequence[int]],
    images: Tensor,
    labels: Tensor | Sequence[int] | None = None,
    *,
    seed: int = 0,
    progress: bool = True,
    **settings: Any,
) -> nn.Module:
    """A copy of a network without some of its units, made to work again.

    Args:
        model: the network that was scored; left as it is.
        cut: group -> units to remove, from `plan` or of your own.
        images: (n, channels, height, width), a few hundred, not those that it is measured on.
        labels: (n,) integers; only read by a distillation that is asked to.
        seed: of what is drawn.
        progress: say how far a distillation is.
        **settings: `repair` and `distill`, as in the job file's section `prune`.
    Returns:
        the smaller network, in eval mode, float32, on the network's device.
    Raises:
        ValueError: an argument is wrong; names it.
    """
    console = PlainConsole(quiet=not progress)
    made = _repaired(model, cut, images, labels, seed, settings, console)
    for note in made.notes:
        warnings.warn(note, stacklevel=2)
    return made.network


def _repaired(
    model: nn.Module,
    cut: Mapping[str, Sequence[int]],
    images: Tensor,
    labels: Tensor | Sequence[int] | None,
    seed: int,
    settings: Mapping[str, Any],
    console: PlainConsole,
) -> Compressed:
    _known(settings, REPAIRING)
    asked = section_of(Prune, settings)
    network, pixels = network_of(model), pixels_of(images)
    device = like(network).device
    whole = scorable(network)
    groups = _check_cut(whole, cut, pixels[:1])
    targets = labels_of(labels, len(pixels))
    return about(
        "repair",
        lambda: compressed(
            whole.to(device),
            groups,
            cut,
            asked.repair,
            pixels.to(device),
            None if targets is None else targets.to(device),
            asked,
            seed,
            progress=lambda *how_far: console.print(in_words(*how_far)),
        ),
    )


def compress(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | Sequence[int] | None = None,
    *,
    progress: bool = True,
    **settings: Any,
) -> nn.Module:
    """A smaller network that works: scores, allocation, cut and repair in one call.

    Args:
        model: any network that gives logits (n, classes); left as it is.
        images: (n, channels, height, width), a few hundred, as the network takes them.
        labels: (n,) integers from 0; without them units are scored by how far the outputs move.
        progress: say what is done.
        **settings: keys of the job file's sections `score`, `cluster` and `prune` by their names:
            `macs` (share that may stay, 0.5 unless another target is given), `repair`,
            `permutations`, ...; and `groups`, `ids`, `workers` as in `score`.
    Returns:
        the smaller network, in eval mode, float32, on the network's device.
    Raises:
        ValueError: an argument is wrong; names it.
        RuntimeError: scoring failed; names group and images.
    """
    of_scores = {"groups", "ids", "workers", *Score.model_fields, *Cluster.model_fields}
    _known(settings, list(dict.fromkeys([*CHOOSING, "ratio", *REPAIRING, *sorted(of_scores)])))
    choosing = {key: settings[key] for key in settings if key in (*CHOOSING, "ratio")}
    if not set(TARGETS) & choosing.keys():
        choosing["macs"] = 0.5
    repairing = {key: settings[key] for key in settings if key in REPAIRING}
    scoring = {key: settings[key] for key in settings if key in of_scores}
    if labels is None:
        scoring.setdefault("value", "neg_kl_divergence")
    section_of(Prune, choosing | repairing)  # what is wrong is said before anything is scored
    console = PlainConsole(quiet=not progress)
    scores = score(model, images, labels, progress=progress, **scoring)
    console.print(repr(scores))
    cut = plan(scores, model=model, images=images, labels=labels, **choosing)
    made = _repaired(model, cut, images, labels, scoring.get("seed", 0), repairing, console)
    small = made.network
    example = images[:1].to(like(small))
    n_removed, n_units = sum(map(len, cut.values())), scores.scores.num_rows
    console.print(f"{n_removed} of {n_units} units removed, {_in_words(repairing)}")
    for line in (*made.done, *made.notes):
        console.print(line)
    whole = copy.deepcopy(network_of(model)).eval().float()
    for title, before, after in zip(
        ("parameters", "multiply-adds"), count_macs(whole, example), count_macs(small, example)
    ):
        console.print(f"{title}: {before:,} -> {after:,} ({after / before:.1%})")
    return small


def _in_words(repairing: Mapping[str, Any]) -> str:
    names = section_of(Prune, repairing).repair
    return f"repaired by {', '.join(names)}" if names else "not repaired"


def _known(settings: Mapping[str, Any], names: Sequence[str]) -> None:
    unknown = settings.keys() - set(names)
    if unknown:
        raise ValueError(f"{min(unknown)}: no such argument; there are {', '.join(names)}")


def _named(groups: Sequence[Group], names: Sequence[str]) -> list[Group]:
    by_name = {group.name: group for group in groups}
    lost = [name for name in names if name not in by_name]
    if lost:
        raise ValueError(f"model: it has no group '{lost[0]}', which the scores are of")
    return [by_name[name] for name in names]


def _check_cut(whole: nn.Module, cut: Mapping[str, Sequence[int]], example: Tensor) -> list[Group]:
    """The groups that lose units.

    Raises:
        ValueError: one of them cannot be cut.
    """
    about("example", lambda: probe(whole, example))
    found = [group for group in find_groups(whole, example) if cut.get(group.name)]
    for group in found:
        reason = group.reason or check_group(whole, group, example, seed=0)
        if reason is not None:
            raise ValueError(f"cut: group '{group.name}' cannot be cut: {reason}")
    return found


def _with_criteria(
    table: pa.Table,
    whole: nn.Module,
    groups: Sequence[Group],
    pixels: Tensor,
    labels: Tensor | Sequence[int] | None,
    asked: Prune,
) -> pa.Table:
    targets = labels_of(labels, len(pixels))
    for name in needed_criteria(asked):
        if name not in table.column_names:
            try:
                of_groups = criterion(name, whole, groups, pixels, targets)
            except ValueError as error:
                raise ValueError(f"rank_by: {error}") from error
            values = np.concatenate([of_groups[group.name] for group in groups])
            table = table.append_column(name, pa.array(values, pa.float64()))
    return table
