"""The public functions behind the scores: plan a cut, make it, repair it, or all at once."""

import glob
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor, nn

from shapray.api import Prepared, Scores, prepared, score
from shapray.arguments import (
    about,
    check_known,
    kind_of,
    labels_of,
    named_as_arguments,
    network_of,
    pixels_of,
    scorable,
    section_of,
)
from shapray.config import Cluster, Prune, Score
from shapray.config.prune import TARGETS
from shapray.driver.console import PlainConsole
from shapray.driver.group_table import groups_of
from shapray.inputs.model import made_plain
from shapray.inputs.outputs import own
from shapray.network.check import agree, check_group
from shapray.network.cuttable import as_program, cuttable
from shapray.network.find import find_groups
from shapray.network.group import Group
from shapray.network.index_maps import check_removed
from shapray.network.probe import probe
from shapray.network.program import is_program
from shapray.network.surgery import prune_model
from shapray.network.unreached import drop_unreached
from shapray.pruning.chooser import Chooser
from shapray.pruning.compressed import Compressed, compressed
from shapray.pruning.evaluate import count_macs
from shapray.pruning.feasible import check_images, check_ways
from shapray.pruning.ranked import named, ranked
from shapray.pruning.ranking import needed_criteria, rankings
from shapray.pruning.repair.curves import shuffled
from shapray.pruning.repair.distill import in_words
from shapray.pruning.rounds import (
    Decision,
    changed,
    check_rounds,
    of_the_whole,
    repairs_between,
    sizes_on_the_way,
)
from shapray.pruning.sizes import Sizes
from shapray.quality import like

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
            afterwards), `rank_by` ("mean_abs" without them), `per_multiply_add`, `min_units`,
            `round_to`, `protect`.
    Returns:
        group -> units to remove, ascending; every scored group, some with none.
    Raises:
        ValueError: an argument is wrong; names it.
    """
    check_known(settings, CHOOSING)
    given = settings | ({} if ratio is None else {"ratio": ratio})
    if model is None or images is None:
        given = {"allocation": "global", "rank_by": "mean_abs"} | given
    asked = section_of(Prune, given | {"criteria": []})
    key, share = asked.target
    by_rank = key == "ratio" and asked.allocation != "measured" and not asked.per_multiply_add
    n_units = Counter(scores.scores["group"].to_pylist())
    if model is None or images is None:
        if by_rank and not needed_criteria(asked):
            [ranking] = rankings(scores.scores, asked, {})
            chooser = _chooser(asked, n_units, None, groups_of(scores.groups))
            return chooser.choose(ranking, {}, key, share)
        raise ValueError(
            f"model, images: both are needed for {key}: {share}, allocation: {asked.allocation}, "
            f"rank_by: {', '.join(asked.rank_by)}; a ratio of the units by their scores needs none"
        )
    pixels = pixels_of(images)
    whole, _ = cuttable(scorable(model, pixels).network, pixels[:1], _escaped(n_units))
    chooser = _chooser(asked, n_units, _sizes(whole, n_units, pixels[:1]))
    ranking, losses = ranked(chooser, scores.scores, whole, pixels, labels_of(labels, len(pixels)))
    return chooser.choose(ranking, losses, key, share)


def _chooser(
    asked: Prune, n_units: Mapping[str, int], sizes: Sizes | None, groups: Sequence[Group] = ()
) -> Chooser:
    """Raises ValueError for sizes that cannot be met."""
    chooser = Chooser(asked, n_units, sizes, groups)
    chooser.check()
    check_rounds(asked, chooser)
    return chooser


def _sizes(whole: nn.Module, names: Iterable[str], example: Tensor) -> Sizes:
    """Raises ValueError for a group that the network lacks."""
    groups = find_groups(whole, example)
    named(groups, list(names))
    return Sizes(whole, groups, example)


def prune(model: nn.Module, cut: Mapping[str, Sequence[int]], example: Tensor) -> nn.Module:
    """A copy of a network without some of its units; the network itself is left as it is.

    It can be trained. Auxiliary heads that only training mode calls are dropped, with a warning, if
    what they read has been cut.

    Args:
        model: the network that was scored.
        cut: group -> units to remove, from `plan` or of your own.
        example: one image, (1, channels, height, width), with which its channels are followed.
    Raises:
        ValueError: no such group, one that `score` excludes, units out of range or twice, or all
            units of a group.
    """
    if not isinstance(example, Tensor) or example.ndim != 4 or len(example) != 1:
        raise ValueError(
            f"example: one image (1, channels, height, width) is needed, found {kind_of(example)}; "
            "images[:1] is one"
        )
    image = pixels_of(example)
    form, groups = _check_cut(scorable(model, image).network, cut, image)
    network = network_of(model)
    image = image.to(like(network))
    made_plain(network, image, None)
    if is_program(form):
        modes = {name: module.training for name, module in network.named_modules()}
        network = about("cut", lambda: as_program(network.eval(), image))
        for name, module in network.named_modules():
            module.training = modes.get(name, network.training)
    pruned = about("cut", lambda: prune_model(network, groups, cut))
    if said := str(drop_unreached(pruned, network, image)):
        warnings.warn(said, stacklevel=2)
    return own(pruned)


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
    return own(made.network)


def _repaired(
    model: nn.Module,
    cut: Mapping[str, Sequence[int]],
    images: Tensor,
    labels: Tensor | Sequence[int] | None,
    seed: int,
    settings: Mapping[str, Any],
    console: PlainConsole,
) -> Compressed:
    check_known(settings, REPAIRING)
    asked = section_of(Prune, settings)
    pixels = pixels_of(images)
    device = like(model).device
    whole, groups = _check_cut(scorable(model, pixels).network, cut, pixels[:1])
    targets, order = labels_of(labels, len(pixels)), shuffled(len(pixels))  # as a job takes them
    return about(
        "repair",
        lambda: compressed(
            whole.to(device),
            groups,
            cut,
            asked.repair,
            pixels[order].to(device),
            None if targets is None else targets[order].to(device),
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
            `macs` (share that may stay, 0.5 unless another target is given), `repair`, `rounds`
            (of scoring and cutting on the way there), `permutations`, ...; and `groups`, `ids`,
            `workers` as in `score`.
    Returns:
        the smaller network, in eval mode, float32, on the network's device.
    Raises:
        ValueError: an argument is wrong; names it.
        RuntimeError: scoring failed; names group and images.
    """
    of_scores = {"groups", "ids", "workers", *Score.model_fields, *Cluster.model_fields}
    of_plan = (*CHOOSING, "ratio", "rounds")
    check_known(settings, list(dict.fromkeys([*of_plan, *REPAIRING, *sorted(of_scores)])))
    choosing = {key: settings[key] for key in settings if key in of_plan}
    if not set(TARGETS) & choosing.keys():
        choosing["macs"] = 0.5
    repairing = {key: settings[key] for key in settings if key in REPAIRING}
    scoring = {key: settings[key] for key in settings if key in of_scores}
    if labels is None:
        scoring.setdefault("value", "neg_kl_divergence")
    # what is wrong is said before anything is scored
    asked = section_of(Prune, choosing | repairing | {"criteria": []})
    first = prepared(model, images, labels, **scoring)
    n_units = {group.name: group.n_units for group in first.scored}
    chooser = _chooser(asked, n_units, _sizes(first.model, n_units, first.images.pixels[:1]))
    check_images(asked, len(first.images), 0, labels is not None)
    with named_as_arguments():
        check_ways(asked, first.model, first.scored, first.images.pixels[:1])
    console = PlainConsole(quiet=not progress)
    scores = first.run(progress)
    console.print(repr(scores))
    cut = _in_rounds(chooser, first, scores, model, labels, scoring, console)
    made = _repaired(model, cut, images, labels, scoring.get("seed", 0), repairing, console)
    small = made.network
    example = first.images.pixels[:1].to(like(small))
    n_removed, n_units = sum(map(len, cut.values())), scores.scores.num_rows
    console.print(f"{n_removed} of {n_units} units removed, {_in_words(repairing)}")
    for line in (*made.done, *made.notes):
        console.print(line)
    whole = first.model.to(example.device)
    for title, before, after in zip(
        ("parameters", "multiply-adds"), count_macs(whole, example), count_macs(small, example)
    ):
        console.print(f"{title}: {before:,} -> {after:,} ({after / before:.1%})")
    return own(small)


def _in_rounds(
    first: Chooser,
    ready: Prepared,
    scores: Scores,
    model: nn.Module,
    labels: Tensor | Sequence[int] | None,
    scoring: Mapping[str, Any],
    console: PlainConsole,
) -> dict[str, list[int]]:
    """The units that go by all rounds.

    Args:
        first, ready, scores: of the whole network.
        model: it, where it lies.
        scoring: how it was scored, and what is left of it is.
    """
    asked, pixels, memory = first.prune, ready.images.pixels, ready.cluster.memory_per_worker
    targets = labels_of(labels, len(pixels))
    found = ranked(first, scores.scores, ready.model, pixels, targets, memory)
    decision = Decision(1, first, *found)
    names = _escaped(first.n_units)
    again = {**scoring, "groups": names, "progress": not console.quiet}
    repairing = {"repair": list(repairs_between(asked))}
    *between, last = sizes_on_the_way(asked)
    for number, size in enumerate(between, 2):
        cut = decision.cut(size)
        if not decision.takes_more(cut):
            continue  # the same network would get the same scores
        made = _repaired(model, cut, pixels, labels, scoring.get("seed", 0), repairing, console)
        for note in made.notes:
            console.print(f"round {number}: {note}")
        scores = score(made.network, pixels, labels, **again)
        console.print(f"round {number} of {asked.rounds}: {scores!r}")
        n_left = {name: n - len(cut.get(name, ())) for name, n in first.n_units.items()}
        reasons = {
            row["group"]: row["reason"] or changed(row["group"], row["n_units"], n_left)
            for row in scores.groups.to_pylist()
        }
        scored = {name for name in first.n_units if reasons.get(name, "") is None}
        for name in first.n_units:
            if name not in scored:
                reason = reasons.get(name, "it is not found any more")
                console.print(f"round {number}: group {name} keeps what it has: {reason}")
        chooser = first.after(cut, scored)
        left = scorable(made.network, pixels).network
        of_scored = pc.is_in(scores.scores["group"], pa.array(sorted(scored)))
        table = scores.scores.filter(of_scored)
        own, losses = ranked(chooser, table, left, pixels, targets, memory)
        decision = Decision(number, chooser, of_the_whole(own, first.n_units, cut), losses)
    return decision.cut(last)


def _in_words(repairing: Mapping[str, Any]) -> str:
    names = section_of(Prune, repairing).repair
    return f"repaired by {', '.join(names)}" if names else "not repaired"


def _escaped(names: Iterable[str]) -> list[str]:
    return [glob.escape(name) for name in names]


def _check_cut(
    whole: nn.Module, cut: Mapping[str, Sequence[int]], example: Tensor
) -> tuple[nn.Module, list[Group]]:
    """The network in the form that can be cut, and the groups that lose units.

    Raises:
        ValueError: one of them cannot be cut.
    """
    about("example", lambda: probe(whole, example))
    whole, groups = cuttable(whole, example, _escaped(name for name in cut if cut[name]))
    about("cut", lambda: check_removed(groups, cut))
    found = [group for group in groups if cut.get(group.name)]
    for group in found:
        reason = group.reason or check_group(whole, group, example, seed=0)
        if reason is not None:
            raise ValueError(f"cut: group '{group.name}' cannot be cut: {reason}")
    if said := agree(whole, [(group, cut[group.name]) for group in found], example):
        raise ValueError(f"cut: it cannot be made: {said}")
    return whole, found
